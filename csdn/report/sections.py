"""Values of the page's tables and bars: figures of the evaluation, then data, parameters and versions."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from csdn.evaluation.headline import METHODS
from csdn.params import Params, leaves
from csdn.report.charts import Curves, Series, share, ticks
from csdn.report.wording import (
    METHOD_NAMES,
    Figures,
    bdi,
    comparison,
    deviation,
    direction_name,
    percent,
    with_spread,
)
from csdn.runtime.sanitize import in_words

LADDER = tuple(reversed(METHODS))  # from chance to the trained model
FIGURE_NAMES = {
    "rank1": "rank-1",
    "rank5": "rank-5",
    "rank10": "rank-10",
    "rank20": "rank-20",
    "mAP": "mAP",
    "mINP": "mINP",
}
QUARANTINE_ROWS = 50  # shown
CAMERAS = 50  # shown of each modality
PACKAGES = ("csdn", "torch", "open_clip_torch", "numpy", "pyarrow", "simplejpeg", "pillow")


# The figures of the evaluation.


def direction_results(figures: Figures) -> list[dict[str, Any]]:
    """For each direction: headline figures, bars of rank-1 and mAP, and the table of all figures."""
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
    """A figure and its deviation as two texts, in percent, without the sign %."""
    mean = figure["mean"]
    return {"mean": "–" if mean is None else f"{mean:.1f}", "deviation": deviation(figure)}


def bars(figures: Figures, direction: str, figure: str) -> dict[str, Any]:
    """One bar for each method; lengths and whiskers in percent of the axis, which ends at a round value."""
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
        title, y_label = direction_name(direction), "queries with a match within the rank, %"
        charts.append(Curves(title, series, "rank", y_label, x_range=(1.0, 20.0), y_high=100.0))
    return charts


# The data, the refused images, parameters and versions.


def data_rows(ingest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """People and images of the two splits."""
    return [
        {"split": split, "people": ingest["people"][split], **ingest["images"][split]}
        for split in ("train", "test")
    ]


def data_remarks(ingest: Mapping[str, Any]) -> list[str]:
    """Notes on the data: drops, unused people, duplicates, warnings."""
    people, drops = ingest["people"], ingest["drops"]
    remarks = [f"{drops['used']} drop{'s' * (drops['used'] != 1)} of images in use."]
    if people["waiting"]:
        remarks.append(f"{people['waiting']} people wait for images of the other modality and are not used.")
    if ingest["duplicates"]:
        remarks.append(f"{ingest['duplicates']} images came more than once and are used once.")
    warnings = ingest["unlike_published"] + ingest["labels"] + ingest["few_grey_levels"]
    remarks += [f"Warning: {warning}." for warning in warnings]
    for held in drops["held"]:
        remarks.append(
            Markup("Held and left out: {}, {} of {} images are bad: {}.").format(
                bdi(held["address"]),
                held["bad"],
                held["images"],
                bdi(in_words(held["reasons"], held["examples"])),
            )
        )
    for drop in drops["left_out"]:
        remarks.append(
            Markup("Left out: {}, {}: {}").format(bdi(drop["address"]), drop["status"], bdi(drop["reason"]))
        )
    return remarks


def camera_counts(ingest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Images of each modality's CAMERAS largest cameras; `share` of the largest of all, percent."""
    largest = max((n for cameras in ingest["cameras"].values() for n in cameras.values()), default=1)
    rows = []
    for modality in ("visible", "infrared"):
        most = Counter(ingest["cameras"][modality]).most_common(CAMERAS)
        rows += [
            {"modality": modality, "camera": camera, "images": n, "share": round(100 * n / largest, 2)}
            for camera, n in sorted(most)
        ]
    return rows


def more_cameras(ingest: Mapping[str, Any]) -> int:
    """Number of cameras that `camera_counts` leaves out."""
    return sum(max(0, len(cameras) - CAMERAS) for cameras in ingest["cameras"].values())


def quarantine(table: pa.Table) -> dict[str, Any]:
    """The first rows of the refused images, and the number of the rest."""
    shown = table.slice(0, QUARANTINE_ROWS).to_pylist()
    return {"rows": shown, "total": table.num_rows, "more": table.num_rows - len(shown)}


def parameter_groups(params: Params) -> list[tuple[str, list[tuple[str, str]]]]:
    """(section, [(key, value)]) of the parameters that decide the result, nested keys joined by dots."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for key, value in leaves(params.model_dump(exclude={"scaling"})):
        section, _, rest = key.partition(".")
        groups.setdefault(section, []).append((rest or section, "" if value is None else str(value)))
    return list(groups.items())


def versions() -> list[tuple[str, str]]:
    """Versions of Python and of the packages that the result can depend on."""
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            found.append((package, "not installed as a package"))
    return found
