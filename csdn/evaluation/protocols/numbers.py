"""The labels of an index as a protocol takes them, and the images in the order of the published draws."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from csdn.data.labels import canonical_labels

if TYPE_CHECKING:
    from csdn.evaluation.protocols.search import Index

_NUMBERED = re.compile(r"(.*?)(?<![0-9])0*([0-9]{1,18})", re.DOTALL)  # a number that int64 holds


class Place(NamedTuple):
    """A person in front of a camera."""

    person: int
    camera: int


def canonical_index(name: str, index: Index) -> dict[str, Sequence[Any]]:
    """The index as lists, with the labels that the protocol `name` compares; of a canonical one the same.

    Protocol cameras compares names (csdn.data.labels). The benchmarks pad their numbers: people are numbers
    there, and so are cameras but RegDB's. Raises ValueError for a missing value, a label that is none, and
    two names that one number would stand for.
    """
    counted = {"cameras": (), "regdb": ("person",)}.get(name, ("person", "camera"))
    columns: dict[str, Sequence[Any]] = {}
    for what in index:
        columns[what] = _as_list(index[what], flat=what != "places")
        if what in ("person", "modality", "camera"):
            columns[what] = canonical_labels(columns[what], what)
        if what in counted:
            columns[what] = _numbers(columns[what], what)
    return columns


def _as_list(column: Any, flat: bool) -> list[Any]:
    """By place alone: a column may be a list, an array, a tensor, or a pandas Series with an index.

    flat: one value an image; MATLAB's columns have a second dimension of 1.
    """
    if not hasattr(column, "tolist"):
        return list(column)
    values = column if hasattr(column, "numel") else np.asarray(column)  # a tensor, or not
    if flat and values.ndim == 2 and 1 in values.shape:
        values = values.reshape(-1)
    # A float of NumPy keeps its type: float32 is less exact than Python's.
    return list(values) if values.dtype in (np.float16, np.float32) else values.tolist()


def _numbers(labels: Sequence[str], what: str) -> list[int]:
    """The number that each label is, or ends in: 3 of "3", "cam3" and "sysu-0003"."""
    numbers: dict[str, int] = {}
    first: dict[int, tuple[str, str]] = {}  # of each number: the label that had it, and what is before it
    for label in dict.fromkeys(labels):
        match = _NUMBERED.fullmatch(label)
        if match is None:
            raise ValueError(
                f"{what} {label!r} is no number and ends in none of at most 18 digits; this protocol counts "
                "people and cameras, protocol cameras takes names"
            )
        numbers[label] = int(match[2])
        other, before = first.setdefault(numbers[label], (label, match[1]))
        if before != match[1]:
            raise ValueError(
                f"{what} {other!r} and {label!r} end in the same number, and this protocol counts people and "
                "cameras: name both alike if they are one, else give each a number of its own"
            )
    return [numbers[label] for label in labels]


def folders(index: Index, rows: Iterable[int]) -> dict[Place, list[int]]:
    """Rows of each person and camera: people rising, then cameras rising, then paths."""
    found: dict[Place, list[int]] = defaultdict(list)
    for row in rows:
        found[Place(index["person"][row], index["camera"][row])].append(int(row))
    return {place: sorted(found[place], key=lambda row: index["path"][row]) for place in sorted(found)}


def seeded_draw(places: dict[Place, list[int]], shots: int, trial: int) -> np.ndarray:
    """A trial's draw, int64: for each place in order, `shots` of its rows; a place with fewer gives all.

    One shot is what the literature's codes draw: `random.seed(trial)`, then one `random.choice` a place.
    Several shots are a draw of ours from the same generator, `random.sample`: most codes of the literature
    draw ten shots without a seed, so that no two of their runs have the same gallery.
    """
    draws = random.Random(trial)
    if shots == 1:
        drawn = [draws.choice(rows) for rows in places.values()]
    else:
        drawn = [row for rows in places.values() for row in draws.sample(rows, min(shots, len(rows)))]
    return np.array(drawn, dtype=np.int64)
