"""The figures of the evaluation: headline, bars, curves and the table of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from csdn.evaluation.summary import METHODS
from csdn.report.figures import Curves, Series, share, ticks
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
                "length": share(mean, end),
                "low": share(low, end),
                "spread": share(mean + std - low, end),
            }
        )
    return {"figure": FIGURE_NAMES[figure], "end": percent(end, 0), "rows": rows}


def cmc_curves(rows: Sequence[Mapping[str, str]]) -> list[Curves]:
    """One chart for each direction, a line for each method."""
    charts = []
    for direction in dict.fromkeys(row["direction"] for row in rows):
        series = []
        for method in METHODS:
            of = [row for row in rows if row["direction"] == direction and row["method"] == method]
            xs = [float(row["rank"]) for row in of]
            ys = [float(row["score"] or "nan") for row in of]
            series.append(Series(METHOD_NAMES[method], method, xs, ys))
        title, y_label = direction_name(direction), "right within the rank, %"
        charts.append(Curves(title, series, "rank", y_label, x_range=(1.0, 20.0), y_high=100.0))
    return charts
