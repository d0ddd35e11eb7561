"""`csdn gate`: compare models/embedding with the champion, decide, and write metrics/gate.json.

Both models run the protocol of params.yaml on the test images of today's data, and on those of the data that
the champion was chosen on. Identities that either model saw in training are excluded: a bucket decides who is
a test person (csdn.ingest.identities), but data.test_percent, the salt, the aliases or a drop's lists may
have changed since the champion was trained. Each model embeds each image once. Without a champion, the
candidate is compared with CLIP as it is, and with chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import torch

from csdn.data.catalog import (
    MODALITIES,
    SAMPLES_SCHEMA,
    Dataset,
    SampleTable,
    digests,
    image_numbers,
    load_dataset,
    positions,
    to_table,
)
from csdn.data.checkpoint_store import CheckpointStore, open_state, stage_key
from csdn.data.features import Embed, Embedder, extract_features, extract_local
from csdn.data.loader import ImageBatches
from csdn.data.shards import shards_at
from csdn.evaluation.baselines import clip_embed, flipped
from csdn.evaluation.distances import FeatureDistances, RandomDistances
from csdn.evaluation.run import Experiment, prepare_from, untrained
from csdn.ingest.identities import SplitRule, read_aliases
from csdn.ingest.ledger import Status, read_ledger
from csdn.model import CSDN, fuse_batch_norms, load, load_clip, read_config
from csdn.model.device import configured_device, in_precision
from csdn.params import Params
from csdn.retraining.comparison import compare, omitted_pairs
from csdn.retraining.gate import (
    CHAMPION,
    DATA,
    REJECT,
    TODAY,
    Comparison,
    Decision,
    as_json,
    decide,
    decide_first,
)
from csdn.runtime.errors import UserError
from csdn.runtime.files import file_sha256, write_json
from csdn.training.champion import Champion, read_champion

RESULT = Path("metrics/gate.json")
NOT_FINITE = "the candidate's features are not finite numbers: its training went wrong"
# The champion's files below champion/.
WEIGHTS = "embedding/model.safetensors"
FILES = (WEIGHTS, "embedding/config.json", "data/samples.parquet", "data/people.parquet")
FETCH = "`csdn fetch-champion` fetches the champion's files"

Features = Mapping[str, np.ndarray]  # {"champion" or "candidate": features of the test images}
Progress = Callable[[str, str], AbstractContextManager[Callable[..., None]]]


def run_gate(
    params: Params, root: Path, progress: Progress, embedder: Embedder = extract_local
) -> dict[str, Any]:
    """Decide whether models/embedding replaces the champion; returns the content of metrics/gate.json.

    embedder: extracts the features, on this machine or on a cluster. Raises UserError, before anything is
    written, if the champion's files are missing or differ from those that champion.json names, if no test
    person is left, or if a shard is missing.
    """
    device = configured_device(params)
    inputs = read_inputs(params, root)
    experiments = {data: _prepare(dataset, data, params) for data, dataset in inputs.datasets.items()}
    models, clip = _models(inputs, params, root)
    table, rows = unique_images(list(inputs.datasets.values()))
    key = stage_key("evaluation", params, clip, inputs.files)
    with open_state("gate", key, root / ".state") as state:
        found = embed_models(models, table, params, root / "data", state, progress, embedder, device)
        of_data = dict(zip(experiments, rows, strict=True))
        decision, comparisons = _decide(inputs, experiments, found, of_data, params, device)
        version = inputs.champion.version if inputs.champion else None
        notes = [*inputs.notes, *_sampled(experiments)]
        notes += _omitted(experiments, params) if inputs.champion else []
        result = as_json(decision, version, comparisons, notes)
        write_json(root / RESULT, result)
    return result


def _prepare(dataset: Dataset, data: str, params: Params) -> Experiment:
    try:
        return prepare_from(params, dataset)
    except UserError as error:
        raise UserError(f"gate, {DATA[data]}, without people whom a model was trained on: {error}") from None


def _decide(
    inputs: GateInputs,
    experiments: Mapping[str, Experiment],
    features: Features,
    rows: Mapping[str, np.ndarray],
    params: Params,
    device: torch.device,
) -> tuple[Decision, list[Comparison]]:
    """The decision; rows: of the features, by data set, those of its test images."""
    if not np.isfinite(features["candidate"]).all():
        return Decision(REJECT, [NOT_FINITE]), []
    rule, seed = params.gate, params.seed
    comparisons = []
    for data, experiment in experiments.items():  # one after another: each takes a copy of its features
        models = (FeatureDistances(features[name][rows[data]], device) for name in ("champion", "candidate"))
        comparisons += compare(experiment, *models, data, rule, seed)
    if not any(one.data == TODAY for one in comparisons):
        raise UserError(
            "nothing to decide by: no test image has a match in a gallery; add images of test people in the "
            "other modality and by other cameras"
        )
    if inputs.champion:
        return decide(comparisons, rule), comparisons
    candidate = FeatureDistances(features["candidate"][rows[TODAY]], device)
    chance = compare(
        experiments[TODAY], RandomDistances(seed, 0), candidate, TODAY, rule, seed, of_pairs=False
    )
    return decide_first(comparisons, chance), []


def _sampled(experiments: Mapping[str, Experiment]) -> list[str]:
    return [
        f"{search.name.replace('_', ' ')}, {DATA[data]}: {len(search.queries)} of {search.sampled_from} "
        "queries, drawn for both models (evaluation.max_queries)"
        for data, experiment in experiments.items()
        for search in experiment.searches
        if search.sampled_from
    ]


def _omitted(experiments: Mapping[str, Experiment], params: Params) -> list[str]:
    counts = {data: omitted_pairs(experiment, params.gate) for data, experiment in experiments.items()}
    return [
        f"{count} pairs of cameras of {DATA[data]} are not compared; those with the most people are"
        for data, count in counts.items()
        if count
    ]


# Inputs: the ledger, two data sets and the champion's files.


@dataclass(frozen=True)
class GateInputs:
    """The champion, and the data sets by TODAY and CHAMPION, each with its usable test people."""

    champion: Champion | None
    datasets: dict[str, Dataset]
    files: list[Path]  # all that decide the test people and the features: for the key of the state
    notes: list[str]  # facts about the data that a reader of the decision must know


def read_inputs(params: Params, root: Path) -> GateInputs:
    """Read the inputs below the project's root.

    Raises UserError if a file is missing, damaged or not the one that champion.json names.
    """
    champion = read_champion(root).champion
    aliases = root / params.data.aliases
    person = SplitRule(params.data.split_salt, params.data.test_percent, read_aliases(aliases)).person
    candidate, ledger = root / "models/embedding", root / "data/drops.json"
    today = load_dataset(root / "data")
    seen = seen_in_training(people_of(candidate), today)
    names = ("models/embedding/model.safetensors", "models/embedding/config.json")
    files = [root / name for name in (*names, "data/samples.parquet", "data/people.parquet")]
    if champion is None:
        return GateInputs(None, {TODAY: exclude_seen_identities(today, seen, person)}, [*files, aliases], [])
    folder = root / "champion"
    check_champion(folder, champion)
    then = load_dataset(folder / "data")
    seen |= seen_in_training(people_of(folder / "embedding"), then)
    # A drop that was rejected since must not be used any more.
    rejected = [drop.id for drop in read_ledger(ledger) if drop.status == Status.REJECTED]
    datasets = {TODAY: today, CHAMPION: without_drops(then, rejected)}
    usable = {name: exclude_seen_identities(dataset, seen, person) for name, dataset in datasets.items()}
    notes = _images_left_out(then, datasets[CHAMPION])
    notes += [note for name in usable for note in _people_left_out(name, datasets[name], usable[name])]
    if len(_values_of(usable[CHAMPION].samples, "modality")) < 2:
        del usable[CHAMPION]
        notes.append("the data that the champion was chosen on has no test person left to compare on")
    else:
        check_shards(usable[CHAMPION], params, root)
    return GateInputs(champion, usable, [*files, aliases, ledger, *(folder / name for name in FILES)], notes)


def people_of(model: Path) -> list[str]:
    """The people that a model was trained on; raises UserError if its config.json does not name them."""
    people = read_config(model).get("people")
    if not isinstance(people, list) or not all(isinstance(name, str) for name in people):
        raise UserError(
            f"{model / 'config.json'}: does not name the people it was trained on, so they cannot be "
            "excluded from the comparison; `dvc repro` makes a model that names them"
        )
    return people


def check_champion(folder: Path, champion: Champion) -> None:
    """Raise UserError unless the champion's files are there, its weights those that champion.json names."""
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: no such file; {FETCH}")
    found = file_sha256(folder / WEIGHTS)
    if found != champion.embedding:
        raise UserError(
            f"{folder / WEIGHTS}: not the weights of {champion.version} (SHA-256 {found[:16]}..., "
            f"champion.json names {champion.embedding[:16]}...); {FETCH}"
        )


def check_shards(dataset: Dataset, params: Params, root: Path) -> None:
    """Raise UserError if a shard of the data set is missing: ingest never removes one that was used."""
    place = shards_at(params, root / "data")
    names = _values_of(dataset.samples, "shard")
    if "://" in str(place):
        from csdn.ingest.pack import sizes  # it imports a client of the object store, which few need

        there = sizes(str(place))
        missing = [name for name in names if name not in there]
    else:
        missing = [name for name in names if not (Path(place) / name).exists()]
    if missing:
        raise UserError(
            f"{place}/{missing[0]} ({len(missing)} in all): no such shard, and the champion was chosen on "
            "its images; `dvc checkout` restores what DVC has kept; if they must not be used any more, "
            "reject their drop: csdn reject"
        )


def _images_left_out(before: Dataset, after: Dataset) -> list[str]:
    count = before.samples.count_rows() - after.samples.count_rows()
    return (
        [f"{count} images of the champion's data are of drops rejected since, and left out"] if count else []
    )


def _people_left_out(name: str, before: Dataset, after: Dataset) -> list[str]:
    there, left = (len(_values_of(_test_images(dataset), "person_row")) for dataset in (before, after))
    if left == there:
        return []
    count = f"{there - left} of {there} test people of {DATA[name]}"
    return [f"{count} are left out: a model was trained on them"]


# The identities that a model saw in training.


@dataclass(frozen=True)
class SeenData:
    """What a model saw in training: people by their canonical names of that time, images by their keys."""

    people: frozenset[str]
    images: pa.ChunkedArray

    def __or__(self, other: SeenData) -> SeenData:
        return SeenData(self.people | other.people, _concatenated(self.images, other.images))


def seen_in_training(people: Iterable[str], dataset: Dataset) -> SeenData:
    """What a model saw: `people` as its config.json names them, and the training images of its data."""
    train = to_table(dataset.samples, ["key"], ds.field("split") == "train")
    return SeenData(frozenset(people), train["key"])


def exclude_seen_identities(dataset: Dataset, seen: SeenData, person: Callable[[str], str]) -> Dataset:
    """The test images of the people that no model has seen, neither by name nor by an image.

    person: maps a name to today's canonical name, so that a person is recognised under an alias made since.
    """
    tests = _test_images(dataset)
    names = seen.people | {person(name) for name in seen.people}
    known = [name in names or person(name) in names for name in dataset.people["person"].to_pylist()]
    by_name = dataset.people["row"].filter(pa.array(known, pa.bool_()))
    images = to_table(tests, ["person_row", "key"])
    by_image = images["person_row"].filter(pc.is_in(images["key"], value_set=seen.images))
    excluded = _concatenated(by_name, by_image).combine_chunks()
    return Dataset(tests.filter(~ds.field("person_row").isin(excluded)), dataset.people)


def without_drops(dataset: Dataset, drops: Iterable[str]) -> Dataset:
    """The data set without the images of some drops, by id."""
    excluded = ds.field("drop").isin(pa.array(list(drops), pa.string()))
    return Dataset(dataset.samples.filter(~excluded), dataset.people)


def _test_images(dataset: Dataset) -> ds.Dataset:
    return dataset.samples.filter(ds.field("split") == "test")


def _values_of(samples: ds.Dataset, column: str) -> list[Any]:
    """The distinct values of a column."""
    return to_table(samples, [column])[column].unique().to_pylist()


def _concatenated(first: pa.ChunkedArray, second: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([*first.chunks, *second.chunks], first.type)


# Models and their features: one pass over the images for models with the same preprocessing.


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode and its preprocessing; as_clip: its features are CLIP's own."""

    network: CSDN
    normalize: str
    as_clip: bool = False

    @property
    def preprocessing(self) -> tuple[tuple[int, ...], str]:
        """(image size, normalisation): all that decides the tensor of an image."""
        return tuple(self.network.config.image_size), self.normalize

    def embed(self, device: torch.device) -> Embed:
        network = self.network.to(device)
        return clip_embed(network) if self.as_clip else network.embed


def _models(inputs: GateInputs, params: Params, root: Path) -> tuple[dict[str, Model], str]:
    """Candidate and champion, and a hash of CLIP if it takes the champion's place."""
    candidate = _trained_model(root / "models/embedding")
    if inputs.champion:
        return {"champion": _trained_model(root / "champion/embedding"), "candidate": candidate}, ""
    clip = load_clip(params.model.clip, root / params.model.weights)
    as_it_is = Model(untrained(clip, candidate.network), candidate.normalize, as_clip=True)
    return {"champion": as_it_is, "candidate": candidate}, clip.sha256


def _trained_model(folder: Path) -> Model:
    """The model in a folder; raises UserError if there is none."""
    normalize = read_config(folder).get("normalize")
    if normalize not in ("imagenet", "clip"):
        raise UserError(f"{folder / 'config.json'}: normalize = {normalize!r}; allowed: imagenet, clip")
    return Model(fuse_batch_norms(load(folder)), normalize)


def embed_models(
    models: Mapping[str, Model],
    table: SampleTable,
    params: Params,
    data: Path,
    state: CheckpointStore,
    progress: Progress,
    embedder: Embedder,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Features float32 [n, D] of each model for the n images of `table`, with the evaluation's flip TTA."""
    features = {}
    for number, preprocessing in enumerate(dict.fromkeys(model.preprocessing for model in models.values())):
        same = {name: model for name, model in models.items() if model.preprocessing == preprocessing}
        batches = ImageBatches(table, shards_at(params, data), *preprocessing, params.evaluation.batch_size)
        make_embeds = partial(_embeds, same, params.evaluation.flip_tta, params.training.precision)
        extract = partial(embedder, batches, make_embeds, params, device)
        with progress("embed", "images") as report:
            features |= extract_features(extract, len(table), state.part(f"features-{number}"), report)
    return features


def _embeds(
    models: Mapping[str, Model], flip_tta: bool, precision: str, device: torch.device
) -> dict[str, Embed]:
    embeds = {name: in_precision(model.embed(device), precision, device) for name, model in models.items()}
    return {name: flipped(embed) for name, embed in embeds.items()} if flip_tta else embeds


def unique_images(datasets: Sequence[Dataset]) -> tuple[SampleTable, list[np.ndarray]]:
    """Each test image of several data sets once, and for each data set the rows of its test images.

    An image that several data sets have is read where the first one has it. The table's labels have no
    meaning.
    """
    columns = [name for name in SAMPLES_SCHEMA.names if name not in ("path", "drop", "places")]
    tests = [to_table(_test_images(one), columns) for one in datasets]
    samples = pa.concat_tables(tests)
    # What an image's features depend on: its bytes (by key) and its modality.
    numbers = image_numbers(digests(samples.to_batches()))
    images = len(MODALITIES) * numbers + positions(samples["modality"], MODALITIES)
    _, first, same = np.unique(images, return_index=True, return_inverse=True)
    rows = np.argsort(np.argsort(first))[same]
    table = Dataset(ds.dataset(samples.take(np.sort(first))), datasets[0].people).test_table()
    return table, np.split(rows, np.cumsum([one.num_rows for one in tests])[:-1])
