"""Example queries, chosen by rule: ranked lists, and the easiest confusions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from csdn.report.images import Gallery, Shown
from csdn.report.wording import direction_name, percent

Row = Mapping[str, Any]  # of evaluation/queries.parquet

LISTS = 40  # per direction at most, whatever the parameter is: the page embeds their pictures


@dataclass(frozen=True)
class RankedList:
    """A query with its ten top-ranked images; `missed` is the first match, if it is not among them."""

    query: Shown
    found: list[Shown]
    missed: Shown | None
    rank: int
    text: str


@dataclass(frozen=True)
class Direction:
    name: str
    failures: list[RankedList]
    even: list[RankedList]


def ranked_lists(queries: Sequence[Row], count: int, gallery: Gallery) -> list[Direction]:
    """`count` lists for each direction: half the hardest failures, half spread from best to worst."""
    count = min(count, LISTS)
    directions = []
    for direction, rows in by_direction(queries).items():
        failures, even = hardest(rows, count // 2), spread_out(rows, count - count // 2)
        directions.append(
            Direction(
                direction_name(direction),
                [_list(row, gallery) for row in failures],
                [_list(row, gallery) for row in even],
            )
        )
    return directions


def by_direction(queries: Sequence[Row]) -> dict[str, list[Row]]:
    """The queries of each direction that have a match in the gallery."""
    groups: dict[str, list[Row]] = {row["direction"]: [] for row in queries}
    for row in queries:
        if row["ap"] is not None:
            groups[row["direction"]].append(row)
    return groups


def spread_out(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` queries at equal steps from the highest AP to the lowest."""
    ordered = sorted(rows, key=lambda row: (-row["ap"], row["key"]))
    positions = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[position] for position in positions]


def hardest(rows: Sequence[Row], count: int) -> list[Row]:
    """The `count` queries whose first match ranks lowest, then by AP; one of each person.

    A query with a match at rank 1 is no failure, whatever its AP.
    """
    failed = (row for row in rows if row["first_rank"] > 1)
    worst_first = sorted(failed, key=lambda row: (-row["first_rank"], row["ap"], row["key"]))
    of_people: dict[str, Row] = {}
    for row in worst_first:
        of_people.setdefault(row["person"], row)
    return list(of_people.values())[:count]


def _list(row: Row, gallery: Gallery) -> RankedList:
    found, person = row["top_keys"], row["person"]
    missed = None if row["right_key"] in found else gallery.show(row["right_key"], person)
    text = f"first match at rank {row['first_rank']}, AP {percent(row['ap'])}"
    shown = [gallery.show(key, person) for key in found]
    return RankedList(gallery.show(row["key"]), shown, missed, row["first_rank"], text)


# Easiest confusions: a query, another person's image at rank 1, and the first match.


@dataclass(frozen=True)
class Confusion:
    """`distance` and `right_distance` are those of the query to the wrong image and to the first match."""

    query: Shown
    wrong: Shown
    distance: str
    right: Shown
    right_distance: str
    rank: int


def confusions(queries: Sequence[Row], count: int, gallery: Gallery) -> list[tuple[str, list[Confusion]]]:
    """(direction, the `count` wrong images at rank 1 that are nearest to their queries)."""
    found = []
    for direction, rows in by_direction(queries).items():
        chosen = nearest_wrong(rows, min(count, LISTS), gallery.person, gallery.distance)
        found.append((direction_name(direction), [_confusion(row, gallery) for row in chosen]))
    return found


def nearest_wrong(
    rows: Sequence[Row],
    count: int,
    person: Callable[[str], str],
    distance: Callable[[str, str], float],
) -> list[Row]:
    """Queries with another person at rank 1, the smallest distance first; each two people once."""
    wrong = [row for row in rows if row["top_keys"] and person(row["top_keys"][0]) != row["person"]]
    nearest_first = sorted(wrong, key=lambda row: (distance(row["key"], row["top_keys"][0]), row["key"]))
    of_pairs: dict[frozenset[str], Row] = {}
    for row in nearest_first:
        of_pairs.setdefault(frozenset((row["person"], person(row["top_keys"][0]))), row)
    return list(of_pairs.values())[:count]


def _confusion(row: Row, gallery: Gallery) -> Confusion:
    key, wrong, right = row["key"], row["top_keys"][0], row["right_key"]
    return Confusion(
        gallery.show(key),
        gallery.show(wrong, row["person"]),
        f"{gallery.distance(key, wrong):.2f}",
        gallery.show(right, row["person"]),
        f"{gallery.distance(key, right):.2f}",
        row["first_rank"],
    )
