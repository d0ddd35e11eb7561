"""What the gate reads: the ledger, two data sets, and the champion's files (`csdn champion` fetches them)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from csdn.champion import Champion, read_champion
from csdn.data.dataset import Dataset, load_dataset
from csdn.data.drops import Status, read_ledger
from csdn.data.people import Identity, read_aliases
from csdn.data.reading import shards_at
from csdn.errors import UserError
from csdn.model import read_config
from csdn.params import Params
from csdn.retraining.gate import CHAMPION, TODAY
from csdn.retraining.unseen import trained_on, unseen, without_drops

WEIGHTS = "embedding/model.safetensors"
FILES = (WEIGHTS, "embedding/config.json", "data/samples.parquet", "data/people.parquet")
FETCH = "`csdn champion` fetches the champion's files"


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
    person = Identity(params.data.salt, params.data.test_percent, read_aliases(aliases)).person
    today, newcomer, ledger = load_dataset(root / "data"), root / "models/embedding", root / "data/drops.json"
    trained = trained_on(people_of(newcomer), today)
    names = ("models/embedding/model.safetensors", "models/embedding/config.json")
    files = [root / name for name in (*names, "data/samples.parquet", "data/people.parquet")]
    if champion is None:
        return GateInputs(None, {TODAY: unseen(today, trained, person)}, [*files, aliases], [])
    folder = root / "champion"
    check_champion(folder, champion)
    then = load_dataset(folder / "data")
    trained |= trained_on(people_of(folder / "embedding"), then)
    datasets = {TODAY: today, CHAMPION: _not_rejected(then, ledger)}
    asked = {name: unseen(dataset, trained, person) for name, dataset in datasets.items()}
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
        from csdn.data.stored import sizes  # it brings a client, which few need

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
