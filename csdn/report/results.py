"""The figures of the evaluation as bars, curves and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from csdn.evaluation.scores import METHODS
from csdn.report.figures import Chart, Series, line_chart, ticks
from csdn.report.words import (
    METHOD_NAMES,
    Figures,
    comparison,
    deviation,
    direction_name,
    percent,
    with_spread,
)

LADDER = tuple(reversed(METHODS))  # chance first: what comes after has to beat it
FIGURE_NAMES = {
    "rank1": "rank-1",
    "rank5": "rank-5",
    "rank10": "rank-10",
    "rank20": "rank-20",
    "mAP": "mAP",
    "mINP": "mINP",
}


def direction_results(figures: Figures) -> list[dict[str, Any]]:
    """For each direction its headline, its bars of rank-1 and mAP, and the table of all figures."""
    return [
        {
            "name": direction_name(direction),
            "numbers": [
                {"name": FIGURE_NAMES[name], **number(figures["trained"][direction][name])}
                for name in ("rank1", "mAP", "mINP")
            ],
            "comparison": comparison(direction, figures),
            "bars": [bars(figures, direction, figure) for figure in ("rank1", "mAP")],
            "columns": list(FIGURE_NAMES.values()),
            "table": [
                {
                    "method": METHOD_NAMES[method],
                    "style": method,
                    "cells": [number(figures[method][direction][name]) for name in FIGURE_NAMES],
                }
                for method in LADDER
            ],
            "counts": figures["counts"][direction],
        }
        for direction in figures["counts"]
    ]


def number(figure: Mapping[str, float | None]) -> dict[str, str]:
    """A figure and its deviation as two texts, in percent without the sign."""
    mean = figure["mean"]
    return {"mean": "–" if mean is None else f"{mean:.1f}", "deviation": deviation(figure)}


def bars(figures: Figures, direction: str, figure: str) -> dict[str, Any]:
    """One bar for each method: lengths and whiskers as percent of the axis, which ends at a round value."""
    found = {method: figures[method][direction][figure] for method in LADDER}
    ends = [(one["mean"] or 0.0) + (one["std"] or 0.0) for one in found.values()]
    step = ticks(0.0, max(*ends, 1.0))[1]
    end = step * -(-max(*ends, 1.0) // step)
    rows = []
    for method, one in found.items():
        mean, std = one["mean"] or 0.0, one["std"] or 0.0
        low = max(0.0, mean - std)
        rows.append(
            {
                "method": METHOD_NAMES[method],
                "style": method,
                "text": with_spread(one),
                "length": _share(mean, end),
                "low": _share(low, end),
                "spread": _share(mean + std - low, end),
            }
        )
    return {"figure": FIGURE_NAMES[figure], "end": percent(end, 0), "rows": rows}


def cmc_charts(rows: Sequence[Mapping[str, str]]) -> list[Chart]:
    """One chart for each direction, a line for each method."""
    charts = []
    for direction in dict.fromkeys(row["direction"] for row in rows):
        series = []
        for method in METHODS:
            of = [row for row in rows if row["direction"] == direction and row["method"] == method]
            xs = [float(row["rank"]) for row in of]
            ys = [float(row["score"] or "nan") for row in of]
            series.append(Series(METHOD_NAMES[method], method, xs, ys))
        charts.append(
            line_chart(
                direction_name(direction), series, "rank", "right within the rank, %", x_range=(1.0, 20.0)
            )
        )
    return charts


def camera_grids(rows: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """For each direction query cameras down, gallery cameras across; `share` shades a cell, 0..100."""
    best = max((float(row["rank1"]) for row in rows if row["rank1"]), default=0.0)
    grids = []
    for direction in dict.fromkeys(row["direction"] for row in rows):
        of = [row for row in rows if row["direction"] == direction]
        cells = {(row["query_camera"], row["gallery_camera"]): _cell(row, best) for row in of}
        across = list(dict.fromkeys(row["gallery_camera"] for row in of))
        down = list(dict.fromkeys(row["query_camera"] for row in of))
        grids.append(
            {
                "name": direction_name(direction),
                "across": across,
                "rows": [{"camera": q, "cells": [cells[q, g] for g in across]} for q in down],
            }
        )
    return grids


def _cell(row: Mapping[str, str], best: float) -> dict[str, Any] | None:
    if not row["rank1"]:
        return None
    rank1 = float(row["rank1"])
    return {
        "rank1": percent(rank1),
        "mAP": percent(float(row["mAP"])),
        "queries": row["queries"],
        "share": _share(rank1, best) if best else 0.0,
    }


def _share(value: float, whole: float) -> float:
    return round(100 * value / whole, 2)
