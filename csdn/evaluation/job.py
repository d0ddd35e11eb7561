"""The stage "evaluate" from files to files: embed each test image once, run the protocol for every method.

Methods: `trained`, and the baselines `clip` (the same CLIP before any training), `hog` and `chance`
(csdn.evaluation.baselines). All get the same queries and galleries. What is written:

    metrics/evaluation.json          <method>.<direction>.<figure>.{mean,std}, in percent (0..100) over the
                                     trials; figures rank1, rank5, rank10, rank20, mAP, mINP; and `counts`
    metrics/headline.json            what experiments are compared by (csdn.evaluation.summary)
    evaluation/cmc.csv               rank, score (percent), method, direction
    evaluation/camera_pairs.csv      trained: queries, rank1, mAP (percent) by query and gallery camera, of
                                     PAIRS (csdn.evaluation.scores) a direction at most
    evaluation/queries.parquet       trained, trial 0: a row for each query (QUERIES_SCHEMA)
    evaluation/features.safetensors  `trained` and `clip` features, float16; row n is row n of the test table
    evaluation/text_maps.safetensors for some training people, where in an image their text is (TextMaps);
                                     map n is that of row n of text_maps.csv: key, person, modality

Texts in the CSV files are escaped (csdn.safe.as_cell): people open them in spreadsheets. queries.parquet has
names as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csdn.data.dataset import Dataset, SampleTable, load_dataset
from csdn.data.feed import ImageWalk
from csdn.data.reading import shards_at
from csdn.data.records import MODALITIES
from csdn.device import configure_torch
from csdn.errors import UserError
from csdn.evaluation.baselines import gradient_histograms
from csdn.evaluation.features import clip_embed, mirrored
from csdn.evaluation.people_maps import maps_of_people
from csdn.evaluation.protocols import Index, canonical_index, protocol, rule_cameras
from csdn.evaluation.results import Experiment, evaluate, write_results
from csdn.evaluation.scores import Labels, feature_distances
from csdn.evaluation.summary import headline
from csdn.files import write_json
from csdn.model import CSDN, folded, load, load_clip
from csdn.model.clip import Clip
from csdn.params import Params
from csdn.state import open_state, stage_key
from csdn.walk import Embed, Embedder, embed_all, embedded_here

METHODS = ("trained", "clip", "hog")  # those that look at images

Progress = Callable[[str, str], AbstractContextManager[Callable[..., None]]]


def run_evaluation(
    params: Params,
    data: Path,
    model: Path,
    out: Path,
    metrics: Path,
    progress: Progress,
    embedder: Embedder = embedded_here,
) -> Mapping[str, Any]:
    """Evaluate the model in folder `model` on the test people; returns what is written to `metrics`.

    Writes folder `out` too, and headline.json beside `metrics`. embedder: this one, or csdn.cluster's.
    Raises UserError where no test person has an image of one modality, a gallery would be empty, or weights
    or features are not finite numbers.
    """
    device = configure_torch(params.scaling.threads, params.scaling.device)
    dataset = load_dataset(data)
    experiment = prepare(dataset, params.evaluation.protocol, **params.evaluation.options())
    clip = load_clip(params.model.clip, params.model.weights)
    trained = folded(load(model))
    walk = test_walk(experiment.table, params, data)
    make_embeds = partial(embedders, params, clip, trained)
    embedded = partial(embedder, walk, make_embeds, params.scaling, device)
    inputs = (data / "samples.parquet", data / "people.parquet", *sorted(model.iterdir()))
    with open_state("evaluate", stage_key("evaluation", params, clip.sha256, inputs)) as state:
        with progress("embed", "images") as report:
            features = embed_all(embedded, len(experiment.table), state, report)
        _check_finite(features)
        methods = {name: feature_distances(features[name]) for name in METHODS}
        results = evaluate(experiment, methods, params.seed)
        write_results(results, features, maps_of_people(trained.to(device), dataset, params, data), out)
        write_json(metrics, results.figures)
        write_json(metrics.with_name("headline.json"), headline(results.figures))
    return results.figures


def _check_finite(features: Mapping[str, np.ndarray]) -> None:
    for name, rows in features.items():
        bad = np.count_nonzero(~np.isfinite(rows.sum(axis=1)))
        if bad:
            raise UserError(
                f"features of the method {name} are not finite numbers for {bad} of {len(rows)} test images: "
                "the weights of its network are too large; train again with lower learning rates"
            )


def prepare(dataset: Dataset, name: str, **options: Any) -> Experiment:
    """The test images, with the protocol's queries and galleries drawn. Raises UserError."""
    table = dataset.test_table()
    for modality in MODALITIES:
        if not len(table.of(modality)):
            raise UserError(
                f"nothing to test with: no test person has a {modality.value} image; "
                "add images of them, or raise data.test_percent"
            )
    index = dataset.test_index()
    try:
        searches = protocol(name, index, **options)
        _check_apart(index, canonical_index(name, index))
        labels = Labels(table.label, rule_cameras(name, index))
    except ValueError as error:
        raise UserError(f"evaluation.protocol = {name} does not fit the data: {error}") from error
    for search in searches:
        if not all(map(len, search.galleries)):
            chosen = "".join(f", evaluation.{option} = {value}" for option, value in options.items())
            raise UserError(
                f"evaluation.protocol = {name}{chosen}: {search.name} has no gallery, as no test image is of "
                "its cameras; add such images, or choose another protocol or mode"
            )
    return Experiment(table, index, labels, searches, name, options)


def _check_apart(index: Index, compared: Index) -> None:
    """Raise ValueError where a protocol counts two people or cameras of the data as one."""
    for what in ("person", "camera"):
        known: dict[Any, str] = {}
        for label, number in zip(index[what], compared[what], strict=True):
            if known.setdefault(number, label) != label:
                raise ValueError(
                    f"{what} {known[number]!r} and {label!r} are number {number} of the protocol, and two in "
                    "the data; protocol cameras compares names"
                )


def embedders(params: Params, clip: Clip, trained: CSDN, device: torch.device) -> dict[str, Embed]:
    """What makes a test feature of an image, for each of METHODS."""
    embeds: dict[str, Embed] = {
        "trained": trained.to(device).embed,
        "clip": clip_embed(untrained(clip, trained).to(device)),
    }
    if params.evaluation.mirror:
        embeds = {name: mirrored(embed) for name, embed in embeds.items()}
    # An image and its mirror image have the same histograms, in mirrored order: a second one tells nothing.
    return embeds | {"hog": gradient_histograms}


def untrained(clip: Clip, trained: CSDN) -> CSDN:
    """CLIP as it is, as a network that takes the images that a trained one takes."""
    return folded(
        CSDN.from_clip(clip, identities=1, image_size=trained.config.image_size, stem=trained.config.stem)
    )


def test_walk(table: SampleTable, params: Params, data: Path) -> ImageWalk:
    """Every test image once."""
    model = params.model
    return ImageWalk(
        table, shards_at(params, data), model.image_size, model.normalize, params.evaluation.batch
    )
