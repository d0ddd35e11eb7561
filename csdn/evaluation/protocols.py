"""Who is a query, who is in the gallery of each trial, and by which rule: pure functions of plain columns.

    rows = protocol("cameras", {"person": [...], "modality": [...], "camera": [...], "key": [...]})

gives searches whose queries and galleries are row numbers of the index, so that anybody's features of those
rows can be evaluated with `csdn.evaluation.rank_metrics`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Columns, one entry an image: person, modality ("visible" | "infrared"), camera, key (the image's own name).
Index = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Search:
    """One experiment of a protocol: rows of the index that ask, and those that answer in each trial."""

    name: str  # as in "infrared_to_visible"
    rule: str  # of csdn.evaluation.rank_metrics
    queries: np.ndarray  # int64 [q]
    galleries: tuple[np.ndarray, ...]  # int64 [g] for each trial


def cameras(index: Index, trials: int = 10) -> list[Search]:
    """Protocol "cameras": infrared looks for visible, and the reverse.

    Every image of one modality is a query. The gallery has one image for each (person, camera) of the
    other: the one whose SHA-256 of (trial, person, camera, key) is lowest, so that a draw stays when other
    images arrive. The rule excludes images of the query's own person and camera.
    """
    if trials < 1:
        raise ValueError(f"trials = {trials}: at least 1")
    rows = {m: _rows_of(index, m) for m in ("infrared", "visible")}
    galleries = {m: tuple(_lowest_hash(index, rows[m], trial) for trial in range(trials)) for m in rows}
    return [
        Search("infrared_to_visible", "cameras", rows["infrared"], galleries["visible"]),
        Search("visible_to_infrared", "cameras", rows["visible"], galleries["infrared"]),
    ]


PROTOCOLS: dict[str, Callable[..., list[Search]]] = {"cameras": cameras}


def protocol(name: str, index: Index, **options: Any) -> list[Search]:
    """The searches of a protocol over an index; `options` are those of the function of that name.

    Raises ValueError for an unknown name, a missing column or columns of different lengths.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; allowed: {', '.join(PROTOCOLS)}")
    columns = ("person", "modality", "camera", "key")
    if missing := [column for column in columns if column not in index]:
        raise ValueError(f"the index has no column {', '.join(missing)}")
    if len({len(index[column]) for column in columns}) > 1:
        raise ValueError("the index's columns have different lengths")
    return PROTOCOLS[name](index, **options)


def excluded_pairs(search: Search, index: Index, trial: int = 0) -> int:
    """(query, gallery image) pairs of one person and one camera: what the rule "cameras" takes away."""
    person, camera = index["person"], index["camera"]
    asked = Counter((person[row], camera[row]) for row in search.queries)
    answers = Counter((person[row], camera[row]) for row in search.galleries[trial])
    return sum(count * answers[place] for place, count in asked.items())


def _rows_of(index: Index, modality: str) -> np.ndarray:
    return np.flatnonzero([value == modality for value in index["modality"]])


def _lowest_hash(index: Index, rows: np.ndarray, trial: int) -> np.ndarray:
    """One of `rows` for each (person, camera), in the order of the index."""
    lowest: dict[tuple[Any, Any], tuple[bytes, int]] = {}
    for row in rows:
        place = (index["person"][row], index["camera"][row])
        drawn = (_hash(trial, *place, index["key"][row]), int(row))
        lowest[place] = min(lowest.get(place, drawn), drawn)
    return np.array(sorted(row for _, row in lowest.values()), dtype=np.int64)


def _hash(trial: int, person: str, camera: str, key: str) -> bytes:
    # JSON keeps the parts apart: "ab" + "c" is not "a" + "bc".
    return hashlib.sha256(json.dumps([trial, str(person), str(camera), str(key)]).encode()).digest()
