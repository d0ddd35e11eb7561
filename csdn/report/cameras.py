"""The search between each two cameras alone, as a heat map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csdn.report.figures import share
from csdn.report.words import direction_name, percent

Rows = Sequence[Mapping[str, str]]  # of evaluation/camera_pairs.csv

CAMERAS = 32  # of a side at most: a page stays a page; camera_pairs.csv has more
ROOMY = 8  # cameras across, up to which a cell has room for two figures


@dataclass(frozen=True)
class Cell:
    rank1: float
    mAP: float
    queries: int
    share: float  # of the best rank-1 of all cells, percent: the shade
    text: str
    title: str


@dataclass(frozen=True)
class Grid:
    """Query cameras down, gallery cameras across; a cell is None where there is no figure."""

    name: str
    across: list[str]
    down: list[str]
    cells: list[list[Cell | None]]
    left_out: int  # cameras of camera_pairs.csv that are not shown

    @property
    def roomy(self) -> bool:
        return len(self.across) <= ROOMY


def camera_grids(rows: Rows) -> list[Grid]:
    """One for each direction."""
    rows = [row for row in rows if row["queries"]]  # not the row of the other pairs
    best = max((float(row["rank1"]) for row in rows if row["rank1"]), default=0.0)
    return [
        _grid(direction, [row for row in rows if row["direction"] == direction], best)
        for direction in dict.fromkeys(row["direction"] for row in rows)
    ]


def _grid(direction: str, rows: Rows, best: float) -> Grid:
    sides = [{row[f"{side}_camera"] for row in rows} for side in ("query", "gallery")]
    down, across = (_busiest(rows, f"{side}_camera") for side in ("query", "gallery"))
    found = {(row["query_camera"], row["gallery_camera"]): row for row in rows}
    return Grid(
        direction_name(direction),
        across,
        down,
        [[_cell(found.get((query, gallery)), best) for gallery in across] for query in down],
        sum(len(cameras) - CAMERAS for cameras in sides if len(cameras) > CAMERAS),
    )


def _busiest(rows: Rows, side: str) -> list[str]:
    """The CAMERAS cameras of a side with the most queries, in the order of the rows."""
    queries: Counter[str] = Counter()
    for row in rows:
        queries[row[side]] += int(row["queries"])
    most = {camera for camera, _ in queries.most_common(CAMERAS)}
    return [camera for camera in queries if camera in most]


def _cell(row: Mapping[str, str] | None, best: float) -> Cell | None:
    if not (row and row["rank1"]):
        return None
    rank1, mean_ap, queries = float(row["rank1"]), float(row["mAP"]), int(row["queries"])
    title = f"rank-1 {percent(rank1)}, mAP {percent(mean_ap)}, {queries} quer{'y' if queries == 1 else 'ies'}"
    return Cell(rank1, mean_ap, queries, share(rank1, best), f"{rank1:.0f}", title)


def pairs_by_rank1(rows: Rows, least_queries: int) -> list[dict[str, Any]]:
    """Pairs with at least so many queries, the weakest first: direction, cameras, rank1, queries."""
    known = [
        {**row, "rank1": float(row["rank1"]), "queries": int(row["queries"])}
        for row in rows
        if row["rank1"] and int(row["queries"]) >= least_queries
    ]
    return sorted(known, key=lambda row: row["rank1"])
