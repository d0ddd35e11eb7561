"""The last versions before the champion, and the best of them, with which the gate compares a candidate too.

Each promotion may lose up to the margin against its champion, and the next one again. So a candidate is also
compared with the best of the last `gate.memory` versions, on the test people of today's data that none of
these models saw in training.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

from csdn.data.catalog import MODALITIES, Dataset, load_dataset
from csdn.evaluation.distances import Distances
from csdn.evaluation.run import Experiment
from csdn.retraining.comparison import compare
from csdn.retraining.gate import BEST, Comparison, fewest_people
from csdn.retraining.gate_models import (
    Model,
    SeenData,
    exclude_seen_identities,
    people_of,
    seen_in_training,
    trained_model,
    values_of,
)
from csdn.retraining.versions import fetch_champion, versions_before
from csdn.runtime.errors import ServiceUnavailable, UserError
from csdn.training.champion import Champion

if TYPE_CHECKING:
    from csdn.params import GateParams

FOLDER = Path(".state/versions")  # below the project's root; each version as in champion/


@dataclass(frozen=True)
class Version:
    """A version before the champion: its model, that model's weights, and what it saw in training."""

    name: str
    model: Model
    weights: Path
    seen: SeenData


class Memory(NamedTuple):
    """The last versions, and today's test images of the people that none of them saw either; or nothing."""

    versions: list[Version]
    data: Dataset | None
    notes: list[str]


def last_versions(
    champion: Champion, today: Dataset, person: Callable[[str], str], rule: GateParams, root: Path
) -> Memory:
    """The last `gate.memory` versions before the champion that can be fetched, and the data to compare on.

    today: without the people that the champion or the candidate saw; person: see `exclude_seen_identities`.
    Raises ServiceUnavailable if a remote does not respond.
    """
    if _people(today) < rule.min_people:  # the candidate is undecided anyway
        return Memory([], None, [])
    versions, notes = _fetched(champion, rule.memory, root)
    if not versions:
        return Memory([], None, notes)
    data = exclude_seen_identities(today, reduce(or_, [one.seen for one in versions]), person)
    if _people(data) < rule.min_people or len(values_of(data.samples, "modality")) < len(MODALITIES):
        return Memory([], None, [*notes, _too_few(_people(data), rule)])
    return Memory(versions, data, notes)


def _people(tests: Dataset) -> int:
    return len(values_of(tests.samples, "person_row"))


def _fetched(champion: Champion, count: int, root: Path) -> tuple[list[Version], list[str]]:
    """The versions, oldest first, and a note for each that cannot be used; others are removed from FOLDER.

    A version that a rollback has left was found bad by a person, and is none of them.
    """
    try:
        older = versions_before(root, champion.version) if count else []
    except UserError as error:  # `csdn gate` by hand, in a folder without Git
        return [], [f"no version before {champion.version} is compared: {' '.join(str(error).split())}"]
    names = older[max(0, len(older) - count) :]
    for folder in (root / FOLDER).glob("v*"):
        if folder.name not in names:
            shutil.rmtree(folder)
    found, notes = [], []
    for name in names:
        try:
            found.append(_version(name, root))
        except ServiceUnavailable:
            raise
        except UserError as error:
            notes.append(f"version {name} is not compared: {' '.join(str(error).split())}")
    return found, notes


def _version(name: str, root: Path) -> Version:
    folder = root / FOLDER / name
    fetch_champion(root, name, folder)
    model = folder / "embedding"
    seen = seen_in_training(people_of(model), load_dataset(folder / "data"))
    return Version(name, trained_model(model), model / "model.safetensors", seen)


def _too_few(people: int, rule: GateParams) -> str:
    return (
        f"the candidate is not compared with the last versions: {people} test people of today's data were "
        f"seen in training by none of them, and {rule.min_people} are needed (gate.min_people)"
    )


def compare_with_best(
    experiment: Experiment,
    distances: Callable[[str], Distances],
    versions: list[str],
    rule: GateParams,
    seed: int,
) -> tuple[str | None, list[Comparison], list[str]]:
    """The best of the versions, the comparisons of the candidate with it, and notes.

    The best has the highest mean of rank-1 and mAP over the directions. If that is the champion, there is
    nothing more to compare, and the version is None. distances: of a model by its name: "champion",
    "candidate" or one of `versions`.
    """

    def compared(first: str, second: str) -> list[Comparison]:
        return compare(experiment, distances(first), distances(second), BEST, rule, seed, of_pairs=False)

    found = {name: compared("champion", name) for name in versions}
    people = fewest_people(BEST, found[versions[-1]])
    if people < rule.min_people:
        return None, [], [_too_few(people, rule)]
    means = {name: mean(one.candidate for one in each) for name, each in found.items()}
    best = max(reversed(versions), key=means.__getitem__)  # of equals the newest
    champion = mean(one.champion for one in found[best])
    if champion >= means[best]:
        note = (
            f"on {people} test people the champion is not worse than the best of the last versions, {best}: "
            f"the mean of rank-1 and mAP is {champion:.1f} % and {means[best]:.1f} %"
        )
        return None, [], [note]
    return best, compared(best, "candidate"), []
