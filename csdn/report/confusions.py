"""Easiest confusions: a query, somebody else who is ranked first, and the right image behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from csdn.report.gallery import Gallery, Shown
from csdn.report.ranked_lists import LISTS, Row, by_direction
from csdn.report.words import direction_name


@dataclass(frozen=True)
class Confusion:
    """`distance`, `right_distance`: of the query to the wrong and to the right image."""

    query: Shown
    wrong: Shown
    distance: str
    right: Shown
    right_distance: str
    rank: int


def confusions(queries: Sequence[Row], count: int, gallery: Gallery) -> list[tuple[str, list[Confusion]]]:
    """(direction, the `count` wrong answers that are nearest to their queries)."""
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
    """Queries whose first answer is somebody else, the nearest such answer first; two people once."""
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
