"""The stage "evaluate": extract features of each test image once, then run the protocol for every method.

Methods: `trained`, and the baselines `clip` (the same CLIP without training), `hog` and `chance`
(csdn.evaluation.baselines). With evaluation.rerank there is one more, `re-ranked`: `trained` after
k-reciprocal re-ranking (csdn.evaluation.rerank). All get the same queries and galleries. The stage writes:

    metrics/evaluation.json          <method>.<direction>.<figure>.{mean,std}, in percent (0..100) over the
                                     trials; figures rank1, rank5, rank10, rank20, mAP, mINP; and `counts`;
                                     with evaluation.max_queries also `error`, the standard error (not of
                                     `re-ranked`: its lists depend on the other queries); and `open_set` of
                                     the trained model (csdn.evaluation.open_set)
    metrics/headline.json            the figures that experiments are compared by
    evaluation/cmc.csv               rank, score (percent), method, direction
    evaluation/camera_pairs.csv      trained: queries, rank1, mAP (percent) by query and gallery camera, of at
                                     most PAIRS (csdn.evaluation.scores) a direction
    evaluation/open_set.csv          trained: FNIR by FPIR, percent, with the interval of FNIR
    evaluation/thresholds.json       trained: thresholds for use, by direction
    evaluation/queries.parquet       trained, trial 0: a row for each query (QUERIES_SCHEMA)
    evaluation/features.safetensors  `trained` and `clip` features, float16; row n is row n of the test table
    evaluation/text_maps.safetensors for some training people, where in an image their text is (TextMaps);
                                     map n is that of row n of text_maps.csv: key, person, modality

Texts in the CSV files are escaped (csdn.data.outputs.as_cell): people open them in spreadsheets.
queries.parquet has names as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save as serialize

from csdn.data.catalog import MODALITIES, Dataset, SampleTable, load_dataset
from csdn.data.checkpoint_store import open_state, stage_key
from csdn.data.features import Embed, Embedder, extract_features, extract_local
from csdn.data.loader import ImageBatches, test_loader
from csdn.data.outputs import write_csv
from csdn.data.shards import shards_at
from csdn.evaluation.baselines import clip_embed, flipped, gradient_histograms
from csdn.evaluation.distances import Distances, FeatureDistances, RandomDistances
from csdn.evaluation.headline import METHODS, RERANKED, headline
from csdn.evaluation.metrics import summary
from csdn.evaluation.open_set import CURVE_COLUMNS, OpenSet, open_set, write_thresholds
from csdn.evaluation.protocols import (
    Index,
    Search,
    canonical_index,
    excluded_pairs,
    protocol,
    published_counts,
    rule_cameras,
    sample_queries,
)
from csdn.evaluation.ranking import QueryMetrics
from csdn.evaluation.rerank import RerankedDistances
from csdn.evaluation.scores import (
    CameraPairs,
    Labels,
    camera_pairs,
    cmc_rows,
    pair_searches,
    query_trials,
    trial_statistics,
    with_sampling_error,
)
from csdn.evaluation.text_maps import TextMaps, examples, text_maps
from csdn.model import CSDN, fuse_batch_norms, load, load_clip
from csdn.model.clip import Clip
from csdn.model.device import configured_device, in_precision
from csdn.params import Params
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_folder, file_sha256, write_json

TOP = 10  # images at the head of a ranking in queries.parquet
PAIR = ("query_camera", "gallery_camera")
PAIR_COLUMNS = ("direction", *PAIR, "queries", "rank1", "mAP")
QUERIES_SCHEMA = pa.schema(
    {
        "direction": pa.string(),
        "key": pa.string(),
        "person": pa.string(),
        "camera": pa.string(),
        "first_rank": pa.int64(),  # of the first match, 1 = the best; null where the query has no match
        "ap": pa.float64(),  # percent
        "inp": pa.float64(),  # percent
        "top_keys": pa.list_(pa.string()),  # the ten top-ranked gallery images, the best first
        "right_key": pa.string(),  # the first match
    }
)


@dataclass(frozen=True)
class Experiment:
    """The test images and the searches of a protocol over them; `index` are the protocol's columns."""

    table: SampleTable
    index: Mapping[str, Sequence[str]]
    labels: Labels
    searches: list[Search]
    protocol: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """The content of metrics/evaluation.json, and the rows of the files in evaluation/."""

    figures: dict[str, Any]
    cmc: list[dict[str, Any]]
    camera_pairs: list[dict[str, Any]]
    queries: list[dict[str, Any]]
    open_set: dict[str, OpenSet]  # by direction


@dataclass(frozen=True)
class PeopleMaps:
    """Text maps of some training people; row n of `images` (key, person, modality) is image n of the maps."""

    images: list[dict[str, str]]
    maps: TextMaps


def run_evaluation(
    params: Params,
    data: Path,
    model: Path,
    out: Path,
    metrics: Path,
    progress: Callable[[str, str], AbstractContextManager[Callable[..., None]]],
    embedder: Embedder = extract_local,
) -> Mapping[str, Any]:
    """Evaluate the model in folder `model` on the test people; returns the content of `metrics`.

    Writes folder `out` too, and headline.json beside `metrics`. embedder: this one, or csdn.cluster's.
    Raises UserError where no test person has an image of one modality, a gallery would be empty, or weights
    or features are not finite numbers.
    """
    device = configured_device(params)
    dataset = load_dataset(data)
    experiment = prepare_from(params, dataset)
    clip = load_clip(params.model.clip, params.model.weights)
    trained = fuse_batch_norms(load(model))
    batches = test_batches(experiment.table, params, data)
    extract = partial(embedder, batches, partial(embedders, params, clip, trained), params, device)
    inputs = (data / "samples.parquet", data / "people.parquet", *sorted(model.iterdir()))
    with open_state("evaluate", stage_key("evaluation", params, clip.sha256, inputs)) as state:
        with progress("embed", "images") as report:
            features = extract_features(extract, len(experiment.table), state, report)
        _check_finite(features)
        methods = {name: FeatureDistances(features[name], device) for name in METHODS if name in features}
        reranked = RerankedDistances(features["trained"], device) if params.evaluation.rerank else None
        results = evaluate(experiment, methods, params.seed, reranked)
        maps = maps_of_people(trained.to(device), dataset, params, data)
        stamp = file_sha256(model / "model.safetensors"), params.evaluation.flip_tta
        write_results(results, features, maps, stamp, out)
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


# The experiment: test images, queries and galleries.


def prepare(
    dataset: Dataset, name: str, max_queries: int | None = None, seed: int = 0, **options: Any
) -> Experiment:
    """The test images, with the protocol's queries and galleries. Raises UserError where they do not fit.

    max_queries: most queries of a direction, drawn by the seed; None: all.
    """
    table = dataset.test_table()
    for modality in MODALITIES:
        if not len(table.of(modality)):
            raise UserError(
                f"nothing to test with: no test person has a {modality.value} image; "
                "add images of them, or raise data.test_percent"
            )
    by_path = ("path", "places") if name != "cameras" else ()  # what the protocols of benchmarks draw by
    index = dataset.test_index(("person", "modality", "camera", "key", *by_path))
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
    if max_queries:
        searches = [sample_queries(search, max_queries, seed, n) for n, search in enumerate(searches)]
    return Experiment(table, index, labels, searches, name, options)


def prepare_from(params: Params, dataset: Dataset) -> Experiment:
    """`prepare` with the parameters of the section `evaluation`."""
    evaluation = params.evaluation
    return prepare(dataset, evaluation.protocol, evaluation.max_queries, params.seed, **evaluation.options())


def _check_apart(index: Index, compared: Index) -> None:
    """Raise ValueError where the protocol takes two people or cameras of the data for one."""
    for what in ("person", "camera"):
        known: dict[Any, str] = {}
        for label, number in zip(index[what], compared[what], strict=True):
            if known.setdefault(number, label) != label:
                raise ValueError(
                    f"{what} {known[number]!r} and {label!r} are number {number} of the protocol, and two in "
                    "the data; protocol cameras compares names"
                )


# Features: what computes a test feature of an image, for each method.


def test_batches(table: SampleTable, params: Params, data: Path) -> ImageBatches:
    """Every test image once, in batches."""
    model = params.model
    return ImageBatches(
        table, shards_at(params, data), model.image_size, model.normalize, params.evaluation.batch_size
    )


def embedders(params: Params, clip: Clip, trained: CSDN, device: torch.device) -> dict[str, Embed]:
    """The function from images to test features of each method that looks at images."""
    networks: dict[str, Embed] = {
        "trained": trained.to(device).embed,
        "clip": clip_embed(untrained(clip, trained).to(device)),
    }
    precision = params.training.precision
    embeds = {name: in_precision(embed, precision, device) for name, embed in networks.items()}
    if params.evaluation.flip_tta:
        embeds = {name: flipped(embed) for name, embed in embeds.items()}
    # The histograms of a flipped image are those of the image in another order: they add no information.
    return embeds | {"hog": gradient_histograms}


def untrained(clip: Clip, trained: CSDN) -> CSDN:
    """CLIP without training, as a network that takes the images that the trained one takes."""
    return fuse_batch_norms(
        CSDN.from_clip(clip, identities=1, image_size=trained.config.image_size, stem=trained.config.stem)
    )


# Figures, as the rows of the files.


def evaluate(
    experiment: Experiment,
    methods: Mapping[str, FeatureDistances],
    seed: int,
    reranked: RerankedDistances | None = None,
) -> Results:
    """Every method, and chance, on every search of the experiment; the trained one also in the open set."""
    compared: dict[str, Distances] = {**methods, **({RERANKED: reranked} if reranked else {})}
    figures: dict[str, Any] = {name: {} for name in (*METHODS, *compared)}
    cmc: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    queries: list[dict[str, Any]] = []
    left_out: dict[str, int] = {}
    for number, search in enumerate(experiment.searches):
        own = pair_searches(search, experiment.labels)
        for name, distances in {**compared, "chance": RandomDistances(seed, number)}.items():
            trained = name == "trained"  # the only method with figures of queries and of pairs of cameras
            searches = [search, *(pair.search for pair in own.searches if trained)]
            found = query_trials(searches, experiment.labels, distances, top=TOP if trained else 0)
            trials = [summary(of) for of in found.trials[0]]
            statistics = trial_statistics(trials)
            # Re-ranked lists of a sample are not those of all queries, so there is nothing to estimate.
            if search.sampled_from and name != RERANKED:
                statistics = with_sampling_error(statistics, search, found.trials[0])
            figures[name][search.name] = statistics
            cmc += cmc_rows(trials, name, search.name)
            if trained:
                pairs += camera_rows(experiment, search, own, found.trials[1:])
                queries += query_rows(experiment, search, found.trials[0][0], found.top)
        left_out[search.name] = own.left_out
    valid = Counter(row["direction"] for row in queries if row["first_rank"] is not None)
    figures["counts"] = {
        search.name: counts_of(
            search,
            experiment.index,
            experiment.labels.people,
            valid[search.name],
            experiment.protocol,
            experiment.options,
        )
        | ({"camera_pairs_left_out": left_out[search.name]} if left_out[search.name] else {})
        for search in experiment.searches
    }
    open_sets = {
        search.name: open_set(search, experiment.labels, methods["trained"], seed)
        for search in experiment.searches
    }
    figures["open_set"] = {direction: of.figures for direction, of in open_sets.items()}
    return Results(figures, cmc, pairs, queries, open_sets)


def counts_of(
    search: Search,
    index: Index,
    people: np.ndarray,
    valid_queries: int,
    protocol: str,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Counts of a search over an index whose images show `people` [n]; queries and gallery of trial 0.

    `published` has the sizes of the published experiment, where the data is that benchmark and no miniature.
    `sampled_from` is the number of queries before evaluation.max_queries, if that is smaller.
    """
    counts = {
        "queries": len(search.queries),
        "valid_queries": valid_queries,
        "gallery": len(search.galleries[0]),
        "people": len(np.unique(people[search.queries])),
        "excluded_pairs": excluded_pairs(search, index),
        "trials": len(search.galleries),
    }
    if search.sampled_from:
        return counts | {"sampled_from": search.sampled_from}
    published = published_counts(protocol, counts, **options)
    return counts | ({"published": published} if published else {})


def camera_rows(
    experiment: Experiment,
    search: Search,
    pairs: CameraPairs,
    trials: Sequence[Sequence[QueryMetrics]],
) -> list[dict[str, Any]]:
    """Rows of camera_pairs.csv for one search, from the metrics of each pair's trials.

    A row without figures stands for the pairs left out, so that an incomplete table does not look complete.
    """
    names = dict(zip(experiment.labels.cameras.tolist(), experiment.index["camera"], strict=True))
    rows = camera_pairs(search, pairs.searches, trials)
    table = [row | {column: names[row[column]] for column in PAIR} for row in rows]
    if pairs.left_out:
        rest = {"query_camera": f"{pairs.left_out} other pairs"}
        table.append(dict.fromkeys(PAIR_COLUMNS) | {"direction": search.name} | rest)
    return table


def query_rows(
    experiment: Experiment, search: Search, metrics: QueryMetrics, top: np.ndarray
) -> list[dict[str, Any]]:
    """Rows of queries.parquet: each query of a search in trial 0; top: rows of the index [q, n], -1: none."""
    key, valid = experiment.index["key"], metrics.valid
    rows = []
    for number, query in enumerate(search.queries):
        first_match = search.galleries[0][metrics.first_match[number]]
        rows.append(
            {
                "direction": search.name,
                "key": key[query],
                "person": experiment.index["person"][query],
                "camera": experiment.index["camera"][query],
                "first_rank": int(metrics.first_rank[number]) if valid[number] else None,
                "ap": round(100 * float(metrics.ap[number]), 6) if valid[number] else None,
                "inp": round(100 * float(metrics.inp[number]), 6) if valid[number] else None,
                "top_keys": [key[row] for row in top[number] if row >= 0],
                "right_key": key[first_match] if valid[number] else None,
            }
        )
    return rows


# Text maps: only training people have a text.


def maps_of_people(model: CSDN, dataset: Dataset, params: Params, data: Path) -> PeopleMaps:
    """Maps of a visible and an infrared image of a few evenly chosen people; visible images first."""
    table, texts = dataset.train_table(), model.fused_text_features()
    names = dict(zip(dataset.people["row"].to_pylist(), dataset.people["person"].to_pylist(), strict=True))
    rows = examples(table.label, table.modality)
    size, normalize = params.model.image_size, params.model.normalize
    images, maps = [], []
    for code, modality in enumerate(MODALITIES):
        of = rows[table.modality[rows] == code]
        for found, pixels in test_loader(table, of, shards_at(params, data), size, normalize, len(of), 0):
            labels = torch.from_numpy(table.label[found]).to(texts.device)
            maps.append(text_maps(model, pixels.to(texts.device), modality.value, texts, labels))
        images += [
            {"key": table.key(row), "person": names[table.person_row[row]], "modality": modality.value}
            for row in of
        ]
    return PeopleMaps(images, TextMaps(*map(torch.cat, zip(*maps, strict=True))))


def write_results(
    results: Results,
    features: Mapping[str, np.ndarray],
    people: PeopleMaps,
    stamp: tuple[str, bool],
    out: Path,
) -> None:
    """Write the folder `evaluation/` atomically.

    stamp: of the trained features, SHA-256 of the model's weights and whether they have flip TTA.
    """
    with atomic_folder(out) as folder:
        write_csv(folder / "cmc.csv", results.cmc)
        write_csv(folder / "camera_pairs.csv", results.camera_pairs, PAIR_COLUMNS)
        write_csv(
            folder / "open_set.csv",
            [row for of in results.open_set.values() for row in of.curve],
            CURVE_COLUMNS,
        )
        thresholds = {name: of.thresholds for name, of in results.open_set.items() if of.thresholds}
        write_thresholds(folder / "thresholds.json", *stamp, thresholds)
        pq.write_table(pa.Table.from_pylist(results.queries, QUERIES_SCHEMA), folder / "queries.parquet")
        halves = {name: torch.from_numpy(features[name]).half() for name in ("trained", "clip")}
        (folder / "features.safetensors").write_bytes(serialize(halves))
        write_csv(folder / "text_maps.csv", people.images)
        maps = {name: found.cpu().contiguous() for name, found in people.maps._asdict().items()}
        (folder / "text_maps.safetensors").write_bytes(serialize(maps))
