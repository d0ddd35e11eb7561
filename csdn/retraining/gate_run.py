"""`csdn gate`: compare models/embedding with the champion, decide, and write metrics/gate.json.

Both models run the protocol of params.yaml on the test images of today's data, and on those of the data that
the champion was chosen on. Identities that either model saw in training are excluded: a bucket decides who is
a test person (csdn.ingest.identities), but data.test_percent, the salt, the aliases or a drop's lists may
have changed since the champion was trained. If one of the last versions is better than the champion, the
candidate is compared with that one too (csdn.retraining.gate_memory). Each model embeds each image once.
Without a champion, the candidate is compared with CLIP as it is, and with chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csdn.data.catalog import Dataset, load_dataset
from csdn.data.checkpoint_store import open_state, stage_key
from csdn.data.features import Embedder, extract_local
from csdn.data.shards import StoredPlace, shards_at
from csdn.evaluation.distances import FeatureDistances, RandomDistances
from csdn.evaluation.open_set import read_thresholds
from csdn.evaluation.run import Experiment, prepare_from, untrained
from csdn.ingest.identities import SplitRule, read_aliases
from csdn.ingest.ledger import Status, read_ledger
from csdn.model import load_clip
from csdn.model.device import configured_device
from csdn.params import Params
from csdn.retraining.comparison import compare, omitted_pairs
from csdn.retraining.gate import (
    BEST,
    CHAMPION,
    DATA,
    REJECT,
    TODAY,
    UNDECIDED,
    Decision,
    as_json,
    decide,
    decide_first,
    worse_than_clip,
)
from csdn.retraining.gate_memory import Version, compare_with_best, last_versions
from csdn.retraining.gate_models import (
    Model,
    Progress,
    embed_models,
    exclude_seen_identities,
    people_of,
    seen_in_training,
    test_images,
    trained_model,
    unique_images,
    values_of,
    without_drops,
)
from csdn.retraining.versions import same_weights
from csdn.runtime.documents import expected_in, read_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import file_sha256, write_json
from csdn.training.champion import Champion, read_champion

RESULT = Path("metrics/gate.json")
NOT_FINITE = "the candidate's features are not finite numbers: its training went wrong"
# The champion's files below champion/.
WEIGHTS = "embedding/model.safetensors"
FILES = (WEIGHTS, "embedding/config.json", "data/samples.parquet", "data/people.parquet")
FETCH = "`csdn fetch-champion` fetches the champion's files"

Features = Mapping[str, np.ndarray]  # by "champion", "candidate" or a version: of the test images


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
    if inputs.champion and (left := _rolled_back(root)):
        result = as_json(Decision(UNDECIDED, [left]), inputs.champion.version, [])
        write_json(root / RESULT, result)
        return result
    experiments = {data: _prepare(dataset, data, params) for data, dataset in inputs.datasets.items()}
    models, clip = _models(inputs, params, root)
    table, rows = unique_images(list(inputs.datasets.values()))
    key = stage_key("evaluation", params, clip, inputs.files)
    with open_state("gate", key, root / ".state") as state:
        found = embed_models(models, table, params, root / "data", state, progress, embedder, device)
        of_data = dict(zip(experiments, rows, strict=True))
        result = _decide(inputs, experiments, found, of_data, params, device)
        write_json(root / RESULT, result)
    return result


def _rolled_back(root: Path) -> str | None:
    """Why the candidate is not compared: a rollback has left a version with its weights."""
    try:
        version = same_weights(root, file_sha256(root / "models" / WEIGHTS))
    except UserError:  # by hand, in a folder without Git; `promote` looks again
        return None
    return version and (
        f"the candidate has the weights of {version}, which a rollback has left: new data makes another, or "
        f"`csdn reject` of a drop; `csdn rollback {version}` makes that version the champion again"
    )


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
) -> dict[str, Any]:
    """The content of metrics/gate.json; rows: of the features, by data set, those of its test images."""
    rule, seed, champion = params.gate, params.seed, inputs.champion
    version = champion.version if champion else None
    notes = [*inputs.notes, *_sampled(experiments)]
    if not np.isfinite(features["candidate"]).all():
        return as_json(Decision(REJECT, [NOT_FINITE]), version, [], notes)

    def distances(name: str, data: str) -> FeatureDistances:  # a copy of its features
        return FeatureDistances(features[name][rows[data]], device)

    comparisons = []
    for data in (TODAY, CHAMPION):
        if data in experiments:
            before, after = (distances(name, data) for name in ("champion", "candidate"))
            comparisons += compare(experiments[data], before, after, data, rule, seed)
    if not any(one.data == TODAY for one in comparisons):
        raise UserError(
            "nothing to decide by: no test image has a match in a gallery; add images of test people in the "
            "other modality and by other cameras"
        )
    if champion is None:
        candidate = distances("candidate", TODAY)
        chance = compare(
            experiments[TODAY], RandomDistances(seed, 0), candidate, TODAY, rule, seed, of_pairs=False
        )
        return as_json(decide_first(comparisons, chance, rule), version, [], notes)
    best = None
    if BEST in experiments:
        names = [one.name for one in inputs.versions]
        of = partial(distances, data=BEST)
        best, against, about = compare_with_best(experiments[BEST], of, names, rule, seed)
        comparisons, notes = comparisons + against, notes + about
    notes += _omitted(experiments, params)
    return as_json(decide(comparisons, rule, best), version, comparisons, notes, best)


def _sampled(experiments: Mapping[str, Experiment]) -> list[str]:
    return [
        f"{search.name.replace('_', ' ')}, {DATA[data]}: {len(search.queries)} of {search.sampled_from} "
        "queries, drawn for both models (evaluation.max_queries)"
        for data, experiment in experiments.items()
        for search in experiment.searches
        if search.sampled_from
    ]


def _below_clip(root: Path) -> list[str]:
    """What CLIP as it is does better, where the stage `evaluate` has evaluated the candidate."""
    thresholds, figures = root / "evaluation/thresholds.json", root / "metrics/evaluation.json"
    if not (thresholds.exists() and figures.exists()):
        return []
    if read_thresholds(thresholds).model != file_sha256(root / "models" / WEIGHTS):
        return []
    advice = "`dvc repro evaluate` makes it"
    with expected_in(figures, advice):
        return worse_than_clip(read_json(figures, advice))


def _omitted(experiments: Mapping[str, Experiment], params: Params) -> list[str]:
    counts = {
        data: omitted_pairs(experiment, params.gate)
        for data, experiment in experiments.items()
        if data != BEST  # its pairs are not compared at all
    }
    return [
        f"{count} pairs of cameras of {DATA[data]} are not compared; those with the most people are"
        for data, count in counts.items()
        if count
    ]


# Inputs: the ledger, the data sets, and the files of the champion and of the versions before it.


@dataclass(frozen=True)
class GateInputs:
    """The champion, and the data sets by TODAY, CHAMPION and BEST, each with its usable test people."""

    champion: Champion | None
    datasets: dict[str, Dataset]
    files: list[Path]  # all that decide the test people and the features: for the key of the state
    notes: list[str]  # facts that a reader of the decision must know
    versions: list[Version] = field(default_factory=list)  # that the candidate is compared with on BEST


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
    if len(values_of(usable[CHAMPION].samples, "modality")) < 2:
        del usable[CHAMPION]
        notes.append("the data that the champion was chosen on has no test person left to compare on")
    else:
        check_shards(usable[CHAMPION], params, root)
    versions, data, about = last_versions(champion, usable[TODAY], person, params.gate, root)
    if data:
        usable[BEST] = data
    files += [aliases, ledger, *(folder / name for name in FILES), *(one.weights for one in versions)]
    return GateInputs(champion, usable, files, [*notes, *about, *_below_clip(root)], versions)


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
    names = values_of(dataset.samples, "shard")
    if isinstance(place, StoredPlace):
        from csdn.ingest.pack import sizes  # it imports a client of the object store, which few need

        where, there = place.address, sizes(place.address)
        missing = [name for name in names if name not in there]
    else:
        where, missing = str(place), [name for name in names if not (place / name).exists()]
    if missing:
        raise UserError(
            f"{where}/{missing[0]} ({len(missing)} in all): no such shard, and the champion was chosen on "
            "its images; `dvc checkout` restores what DVC has kept; if they must not be used any more, "
            "reject their drop: csdn reject"
        )


def _images_left_out(before: Dataset, after: Dataset) -> list[str]:
    count = before.samples.count_rows() - after.samples.count_rows()
    return (
        [f"{count} images of the champion's data are of drops rejected since, and left out"] if count else []
    )


def _people_left_out(name: str, before: Dataset, after: Dataset) -> list[str]:
    there, left = (len(values_of(test_images(dataset), "person_row")) for dataset in (before, after))
    if left == there:
        return []
    count = f"{there - left} of {there} test people of {DATA[name]}"
    return [f"{count} are left out: a model was trained on them"]


# The models.


def _models(inputs: GateInputs, params: Params, root: Path) -> tuple[dict[str, Model], str]:
    """Candidate, champion and the last versions, and a hash of CLIP if it takes the champion's place."""
    candidate = trained_model(root / "models/embedding")
    if inputs.champion:
        champion = trained_model(root / "champion/embedding")
        last = {one.name: one.model for one in inputs.versions}
        return {"champion": champion, "candidate": candidate, **last}, ""
    clip = load_clip(params.model.clip, root / params.model.weights)
    as_it_is = Model(untrained(clip, candidate.network), candidate.normalize, as_clip=True)
    return {"champion": as_it_is, "candidate": candidate}, clip.sha256
