"""People and cameras of the benchmarks as numbers, and their images in the order of the published draws."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from csdn.evaluation.protocols.search import Index


class Place(NamedTuple):
    """A person in front of a camera."""

    person: int
    camera: int


def number(name: Any) -> int:
    """The number that a person's or camera's name is, or ends in: 3 of 3, "cam3", "sysu-0003".

    Raises ValueError where it ends in none.
    """
    digits = re.search(r"[0-9]+$", str(name))
    if digits is None:
        raise ValueError(f"{name!r} is no number and ends in none; this protocol counts people and cameras")
    return int(digits[0])


def camera_numbers(index: Index) -> np.ndarray:
    """int64 [n]"""
    numbers = {name: number(name) for name in dict.fromkeys(index["camera"])}
    return np.array([numbers[name] for name in index["camera"]], dtype=np.int64)


def folders(index: Index, rows: Iterable[int]) -> dict[Place, list[int]]:
    """Rows of each person and camera: people rising, then cameras rising, then paths."""
    found: dict[Place, list[int]] = defaultdict(list)
    for row in rows:
        found[Place(number(index["person"][row]), number(index["camera"][row]))].append(int(row))
    return {place: sorted(found[place], key=lambda row: index["path"][row]) for place in sorted(found)}


def seeded_draw(places: dict[Place, list[int]], shots: int, trial: int) -> np.ndarray:
    """The literature's draw of a trial, int64: for each place in order, `shots` of its rows.

    `random.seed(trial)`, then one `random.choice` a place, or `random.sample` for several shots; a place
    with fewer rows gives all of them.
    """
    draws = random.Random(trial)
    if shots == 1:
        drawn = [draws.choice(rows) for rows in places.values()]
    else:
        drawn = [row for rows in places.values() for row in draws.sample(rows, min(shots, len(rows)))]
    return np.array(drawn, dtype=np.int64)
