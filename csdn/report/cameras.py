"""The search between each two cameras alone, as a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csdn.report.figures import share
from csdn.report.words import direction_name, percent

Rows = Sequence[Mapping[str, str]]  # of evaluation/camera_pairs.csv

CAMERAS = 32  # of a side at most: a page stays a page; camera_pairs.csv has them all
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
    """Query cameras down, gallery cameras across; a cell is None where no query has a right image."""

    name: str
    across: list[str]
    down: list[str]
    cells: list[list[Cell | None]]
    left_out: int  # cameras that are not shown

    @property
    def roomy(self) -> bool:
        return len(self.across) <= ROOMY


def camera_grids(rows: Rows) -> list[Grid]:
    """One for each direction."""
    best = max((float(row["rank1"]) for row in rows if row["rank1"]), default=0.0)
    return [
        _grid(direction, [row for row in rows if row["direction"] == direction], best)
        for direction in dict.fromkeys(row["direction"] for row in rows)
    ]


def _grid(direction: str, rows: Rows, best: float) -> Grid:
    sides = [list(dict.fromkeys(row[f"{side}_camera"] for row in rows)) for side in ("query", "gallery")]
    down, across = (cameras[:CAMERAS] for cameras in sides)
    found = {(row["query_camera"], row["gallery_camera"]): row for row in rows}
    return Grid(
        direction_name(direction),
        across,
        down,
        [[_cell(found[query, gallery], best) for gallery in across] for query in down],
        sum(len(cameras) - CAMERAS for cameras in sides if len(cameras) > CAMERAS),
    )


def _cell(row: Mapping[str, str], best: float) -> Cell | None:
    if not row["rank1"]:
        return None
    rank1, mean_ap, queries = float(row["rank1"]), float(row["mAP"]), int(row["queries"])
    title = (
        f"{row['query_camera']} → {row['gallery_camera']}: rank-1 {percent(rank1)}, mAP {percent(mean_ap)}, "
        f"{queries} quer{'y' if queries == 1 else 'ies'}"
    )
    return Cell(rank1, mean_ap, queries, share(rank1, best), f"{rank1:.0f}", title)


def pairs_by_rank1(rows: Rows, least_queries: int) -> list[dict[str, Any]]:
    """Pairs with at least so many queries, the weakest first: direction, cameras, rank1, queries."""
    known = [
        {**row, "rank1": float(row["rank1"]), "queries": int(row["queries"])}
        for row in rows
        if row["rank1"] and int(row["queries"]) >= least_queries
    ]
    return sorted(known, key=lambda row: row["rank1"])
