"""Ranked retrieval lists: some queries with the ten gallery images that the model ranked first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from csdn.report.words import direction_name, percent

Row = Mapping[str, Any]  # of evaluation/queries.parquet


@dataclass(frozen=True)
class Shown:
    """One picture with what is said of it."""

    picture: str
    person: str
    camera: str
    right: bool | None = None  # None: the query itself


@dataclass(frozen=True)
class RankedList:
    query: Shown
    found: list[Shown]
    text: str


def ranked_lists(
    queries: Sequence[Row], count: int, show: Callable[[str], Shown]
) -> list[tuple[str, list[RankedList]]]:
    """(direction, lists) for each direction; `show` gives the picture of an image's key."""
    result = []
    for direction in dict.fromkeys(row["direction"] for row in queries):
        chosen = spread_out([row for row in queries if row["direction"] == direction], count)
        result.append((direction_name(direction), [_list(row, show) for row in chosen]))
    return result


def spread_out(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` valid queries at equal steps from the highest AP to the lowest, none picked by hand."""
    ordered = sorted((row for row in rows if row["ap"] is not None), key=lambda row: (-row["ap"], row["key"]))
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def _list(row: Row, show: Callable[[str], Shown]) -> RankedList:
    query = show(row["key"])
    found = []
    for key in row["top_keys"]:
        shown = show(key)
        found.append(Shown(shown.picture, shown.person, shown.camera, shown.person == row["person"]))
    return RankedList(query, found, f"first right image at rank {row['first_rank']}, AP {percent(row['ap'])}")
