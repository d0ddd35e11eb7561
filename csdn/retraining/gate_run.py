"""Who may be asked when two models are compared: people whom neither was trained on.

A bucket decides who is a test person, so nobody ever changes sides (csdn.ingest.identities). But data.test_percent,
the salt, the aliases or a drop's lists may have changed since the champion was trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch

from csdn.data.catalog import Dataset, SampleTable, load_dataset
from csdn.data.features import Embed, Embedder, extract_features, extract_local
from csdn.data.loader import ImageBatches
from csdn.data.shards import shards_at
from csdn.data.state import StageState, open_state, stage_key
from csdn.evaluation.extractors import clip_embed, flipped
from csdn.evaluation.run import Experiment, prepare, untrained
from csdn.evaluation.scores import feature_distances, random_ranking
from csdn.ingest.identities import SplitRule, read_aliases
from csdn.ingest.ledger import Status, read_ledger
from csdn.model import CSDN, fuse_batch_norms, load, load_clip, read_config
from csdn.model.device import configure_torch
from csdn.params import Params
from csdn.retraining.comparison import compare, unjudged_pairs
from csdn.retraining.gate import (
    CHAMPION,
    DATA,
    KEEP,
    TODAY,
    Comparison,
    Decision,
    as_json,
    decide,
    decide_first,
)
from csdn.runtime.errors import UserError
from csdn.runtime.files import write_json
from csdn.training.champion import Champion, read_champion


@dataclass(frozen=True)
class SeenData:
    """Whom a model has seen: people by their canonical names of that time, and their images by key."""

    people: frozenset[str]
    images: pa.ChunkedArray

    def __or__(self, other: SeenData) -> SeenData:
        return SeenData(self.people | other.people, _joined(self.images, other.images))


def trained_on(people: Iterable[str], dataset: Dataset) -> SeenData:
    """Whom a model was trained on: `people` as its config.json names them, the images of its data."""
    seen = dataset.samples.filter(pc.equal(dataset.samples["side"], "train"))
    return SeenData(frozenset(people), seen["key"])


def exclude_seen_identities(dataset: Dataset, trained: SeenData, person: Callable[[str], str]) -> Dataset:
    """The test images of a data set whose people no model has seen, neither by name nor by an image.

    person: the name by which somebody is known today, so that an alias made since hides nobody.
    """
    tests = dataset.samples.filter(pc.equal(dataset.samples["side"], "test"))
    names = trained.people | {person(name) for name in trained.people}
    known = [name in names or person(name) in names for name in dataset.people["person"].to_pylist()]
    by_name = dataset.people["row"].filter(pa.array(known, pa.bool_()))
    by_image = tests["person_row"].filter(pc.is_in(tests["key"], value_set=trained.images))
    left_out = pc.is_in(tests["person_row"], value_set=_joined(by_name, by_image))
    return Dataset(tests.filter(pc.invert(left_out)), dataset.people)


def without_drops(dataset: Dataset, drops: Iterable[str]) -> Dataset:
    """The data set without the images of some drops, by id."""
    gone = pc.is_in(dataset.samples["drop"], value_set=pa.array(list(drops), pa.string()))
    return Dataset(dataset.samples.filter(pc.invert(gone)), dataset.people)


def _joined(first: pa.ChunkedArray, second: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([*first.chunks, *second.chunks], first.type)


# What the gate reads: the ledger, two data sets, and the champion's files (`csdn fetch-champion` fetches them).


WEIGHTS = "embedding/model.safetensors"
FILES = (WEIGHTS, "embedding/config.json", "data/samples.parquet", "data/people.parquet")
FETCH = "`csdn fetch-champion` fetches the champion's files"


@dataclass(frozen=True)
class GateInputs:
    """Who is compared and on what: data sets by TODAY and CHAMPION, each with the test people to ask."""

    champion: Champion | None
    datasets: dict[str, Dataset]
    files: list[Path]  # that decide who is asked, and the features: for the key of the state
    notes: list[str]  # what a reader of the decision must know of the data


def read_inputs(params: Params, root: Path) -> GateInputs:
    """Read what lies below the project's root.

    Raises UserError where a file is missing, damaged or another than champion.json names.
    """
    champion = read_champion(root).champion
    aliases = root / params.data.aliases
    person = SplitRule(params.data.split_salt, params.data.test_percent, read_aliases(aliases)).person
    today, newcomer, ledger = load_dataset(root / "data"), root / "models/embedding", root / "data/drops.json"
    trained = trained_on(people_of(newcomer), today)
    names = ("models/embedding/model.safetensors", "models/embedding/config.json")
    files = [root / name for name in (*names, "data/samples.parquet", "data/people.parquet")]
    if champion is None:
        return GateInputs(
            None, {TODAY: exclude_seen_identities(today, trained, person)}, [*files, aliases], []
        )
    folder = root / "champion"
    check_champion(folder, champion)
    then = load_dataset(folder / "data")
    trained |= trained_on(people_of(folder / "embedding"), then)
    datasets = {TODAY: today, CHAMPION: _not_rejected(then, ledger)}
    asked = {name: exclude_seen_identities(dataset, trained, person) for name, dataset in datasets.items()}
    notes = _dropped(then, datasets[CHAMPION])
    notes += [note for name in asked for note in _left_out(name, datasets[name], asked[name])]
    if len(asked[CHAMPION].samples["modality"].unique()) < 2:
        del asked[CHAMPION]
        notes.append("nobody of the data that the champion was chosen on can be asked any more")
    else:
        check_shards(asked[CHAMPION], params, root)
    return GateInputs(champion, asked, [*files, aliases, ledger, *(folder / name for name in FILES)], notes)


def people_of(model: Path) -> list[str]:
    """Whom the model in a folder was trained on; raises UserError where its config.json does not say."""
    people = read_config(model).get("people")
    if not isinstance(people, list) or not all(isinstance(name, str) for name in people):
        raise UserError(
            f"{model / 'config.json'}: does not name the people it was trained on, so nobody knows who may "
            "be asked; `dvc repro` makes a model that does"
        )
    return people


def check_champion(folder: Path, champion: Champion) -> None:
    """Raise UserError unless the champion's files are there, its weights those that champion.json names."""
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: no such file; {FETCH}")
    with (folder / WEIGHTS).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != champion.embedding:
        raise UserError(
            f"{folder / WEIGHTS}: not the weights of {champion.version} (SHA-256 {found[:16]}..., "
            f"champion.json names {champion.embedding[:16]}...); {FETCH}"
        )


def check_shards(dataset: Dataset, params: Params, root: Path) -> None:
    """Raise UserError where a shard of the data set is gone: ingest never removes one that was used."""
    place = shards_at(params, root / "data")
    names = dataset.samples["shard"].unique().to_pylist()
    if "://" in str(place):
        from csdn.ingest.pack import sizes  # it brings a client, which few need

        there = sizes(str(place))
        gone = [name for name in names if name not in there]
    else:
        gone = [name for name in names if not (Path(place) / name).exists()]
    if gone:
        raise UserError(
            f"{place}/{gone[0]} ({len(gone)} in all): no such shard, and the champion was chosen on its "
            "images; `dvc checkout` brings back what DVC has kept; if they must not be used any more, reject "
            "their drop: csdn reject"
        )


def _not_rejected(then: Dataset, ledger: Path) -> Dataset:
    """The champion's data without drops that somebody rejected since: what they say is not to be used."""
    rejected = [drop.id for drop in read_ledger(ledger) if drop.status == Status.REJECTED]
    return without_drops(then, rejected)


def _dropped(before: Dataset, after: Dataset) -> list[str]:
    count = before.samples.num_rows - after.samples.num_rows
    return (
        [f"{count} images of the champion's data are of drops rejected since, and left out"] if count else []
    )


def _left_out(name: str, before: Dataset, after: Dataset) -> list[str]:
    there, asked = _test_people(before), _test_people(after)
    if asked == there:
        return []
    whose = "today's" if name == TODAY else "the champion's"
    return [
        f"{there - asked} of {there} test people of {whose} data are left out: a model was trained on them"
    ]


def _test_people(dataset: Dataset) -> int:
    return len(np.unique(dataset.test_table().person_row))


# Test features of several models, from one pass over the images where they take the same ones.


Progress = Callable[[str, str], AbstractContextManager[Callable[..., None]]]


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode and how it takes images; as_clip: its features are CLIP's own."""

    network: CSDN
    normalize: str
    as_clip: bool = False

    @property
    def images(self) -> tuple[tuple[int, ...], str]:
        """What decides the tensor of an image."""
        return tuple(self.network.config.image_size), self.normalize

    def embed(self, device: torch.device) -> Embed:
        network = self.network.to(device)
        return clip_embed(network) if self.as_clip else network.embed


def embed_models(
    models: Mapping[str, Model],
    table: SampleTable,
    params: Params,
    data: Path,
    state: StageState,
    progress: Progress,
    embedder: Embedder,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Features float32 [n, D] of each model for the n images of `table`, mirrored as the evaluation's are."""
    features = {}
    for number, images in enumerate(dict.fromkeys(model.images for model in models.values())):
        same = {name: model for name, model in models.items() if model.images == images}
        walk = ImageBatches(table, shards_at(params, data), *images, params.evaluation.batch_size)
        embedded = partial(
            embedder, walk, partial(_embeds, same, params.evaluation.flip_tta), params.scaling, device
        )
        with progress("embed", "images") as report:
            features |= extract_features(embedded, len(table), state.part(f"walk-{number}"), report)
    return features


def _embeds(models: Mapping[str, Model], mirror: bool, device: torch.device) -> dict[str, Embed]:
    embeds = {name: model.embed(device) for name, model in models.items()}
    return {name: flipped(embed) for name, embed in embeds.items()} if mirror else embeds


def all_images(datasets: Sequence[Dataset]) -> tuple[SampleTable, list[np.ndarray]]:
    """Every test image of several data sets once, and of each data set the rows that its test images have.

    An image that both have is read where the first one has it. Labels of the table mean nothing.
    """
    samples = pa.concat_tables([dataset.samples for dataset in datasets])
    samples = samples.filter(pa.compute.equal(samples["side"], "test"))
    images = _names(samples)
    first = ~images.duplicated()
    table = Dataset(samples.filter(pa.array(first)), datasets[0].people).test_table()
    known = images[first]
    rows = []
    for dataset in datasets:
        tests = dataset.samples.filter(pa.compute.equal(dataset.samples["side"], "test"))
        rows.append(known.get_indexer(_names(tests)))
    return table, rows


def _names(samples: pa.Table) -> pd.MultiIndex:
    """What an image's features depend on: its bytes, and the modality that it is taken for."""
    return pd.MultiIndex.from_frame(samples.select(["key", "modality"]).to_pandas())


# The gate from files to files: champion and newcomer on the same people, queries and galleries.
#
# Both answer the protocol of params.yaml on the test images of today's data, and on those of the data
# that the champion was chosen on. Nobody is asked whom one of them was trained on. Each image is embedded
# once by each model. Without a champion the newcomer is held against CLIP as it is, and chance. Written:
# metrics/gate.json.


RESULT = Path("metrics/gate.json")
NOT_FINITE = "the newcomer's features are not finite numbers: its training went wrong"
Features = Mapping[str, np.ndarray]


def run_gate(
    params: Params, root: Path, progress: Progress, embedder: Embedder = extract_local
) -> dict[str, Any]:
    """Decide whether models/embedding replaces the champion; returns what is written to metrics/gate.json.

    embedder: this one, or csdn.cluster's. Raises UserError where the champion's files are missing or others
    than champion.json names, where nobody is left to ask, or a shard is gone; nothing is written then.
    """
    device = configure_torch(params.scaling.threads, params.scaling.device)
    inputs = read_inputs(params, root)
    experiments = {data: _prepare(dataset, data, params) for data, dataset in inputs.datasets.items()}
    models, clip = _models(inputs, params, root)
    table, rows = all_images(list(inputs.datasets.values()))
    key = stage_key("evaluation", params, clip, inputs.files)
    with open_state("gate", key, root / ".state") as state:
        found = embed_models(models, table, params, root / "data", state, progress, embedder, device)
        features = {
            data: {name: values[where] for name, values in found.items()}
            for data, where in zip(experiments, rows, strict=True)
        }
        decision, comparisons = _decide(inputs, experiments, features, params)
        version = inputs.champion.version if inputs.champion else None
        notes = [*inputs.notes, *_unjudged(experiments, params)] if inputs.champion else inputs.notes
        result = as_json(decision, version, comparisons, notes)
        write_json(root / RESULT, result)
    return result


def _prepare(dataset: Dataset, data: str, params: Params) -> Experiment:
    try:
        return prepare(dataset, params.evaluation.protocol, **params.evaluation.options())
    except UserError as error:
        whose = "today's data" if data == TODAY else "the champion's data"
        raise UserError(f"gate, {whose}, without people whom a model was trained on: {error}") from None


def _unjudged(experiments: Mapping[str, Experiment], params: Params) -> list[str]:
    counts = {data: unjudged_pairs(experiment, params.gate) for data, experiment in experiments.items()}
    return [
        f"{count} pairs of cameras of {DATA[data]} are not judged: those with the most people are"
        for data, count in counts.items()
        if count
    ]


def _models(inputs: GateInputs, params: Params, root: Path) -> tuple[dict[str, Model], str]:
    """Newcomer and champion, and a hash of CLIP where that stands for the champion."""
    newcomer = _model(root / "models/embedding")
    if inputs.champion:
        return {"champion": _model(root / "champion/embedding"), "newcomer": newcomer}, ""
    clip = load_clip(params.model.clip, root / params.model.weights)
    as_it_is = Model(untrained(clip, newcomer.network), newcomer.normalize, as_clip=True)
    return {"champion": as_it_is, "newcomer": newcomer}, clip.sha256


def _model(folder: Path) -> Model:
    """A model that was trained; raises UserError where its folder has none."""
    normalize = read_config(folder).get("normalize")
    if normalize not in ("imagenet", "clip"):
        raise UserError(f"{folder / 'config.json'}: normalize = {normalize!r}; allowed: imagenet, clip")
    return Model(fuse_batch_norms(load(folder)), normalize)


def _decide(
    inputs: GateInputs,
    experiments: Mapping[str, Experiment],
    features: Mapping[str, Features],
    params: Params,
) -> tuple[Decision, list[Comparison]]:
    if not all(np.isfinite(of["newcomer"]).all() for of in features.values()):
        return Decision(KEEP, [NOT_FINITE]), []
    rule, seed = params.gate, params.seed
    distances = {
        data: {name: feature_distances(values) for name, values in found.items()}
        for data, found in features.items()
    }
    comparisons = [
        one
        for data, of in distances.items()
        for one in compare(experiments[data], of["champion"], of["newcomer"], data, rule, seed)
    ]
    if not any(one.data == TODAY for one in comparisons):
        raise UserError(
            "nothing to decide by: no test image has a right image to find in a gallery; add images of test "
            "people in the other modality and by other cameras"
        )
    if inputs.champion:
        return decide(comparisons, rule), comparisons
    newcomer = distances[TODAY]["newcomer"]
    chance = compare(experiments[TODAY], random_ranking(seed, 0), newcomer, TODAY, rule, seed)
    return decide_first(comparisons, chance), []
