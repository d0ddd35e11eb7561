"""Values of the page's tables and bars.

In this order: the figures of the evaluation, pairs of cameras, the ablation, and data, parameters and
versions.
"""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pyarrow as pa
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from csdn.data.outputs import in_words
from csdn.evaluation.headline import METHODS, OPEN_SET_FPIRS, RERANKED
from csdn.params import Params, leaves
from csdn.report.wording import (
    METHOD_NAMES,
    Figures,
    bdi,
    comparison,
    deviation,
    direction_name,
    interval,
    percent,
    with_spread,
)
from csdn.runtime.documents import read_json
from csdn.runtime.errors import UserError

LADDER = (*reversed(METHODS), RERANKED)  # from chance to the trained model
FIGURE_NAMES = {
    "rank1": "rank-1",
    "rank5": "rank-5",
    "rank10": "rank-10",
    "rank20": "rank-20",
    "mAP": "mAP",
    "mINP": "mINP",
}
QUARANTINE_ROWS = 50  # shown
REMARKS = 30  # on the data, shown
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
                if method in figures
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
    found = {method: figures[method][direction][figure] for method in LADDER if method in figures}
    ends = [(one["mean"] or 0.0) + (one["std"] or 0.0) for one in found.values()]
    end = float(MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(0.0, max(*ends, 1.0))[-1])
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


def open_set_rows(figures: Figures) -> list[dict[str, Any]]:
    """A row for each direction and FPIR: the rates in percent, each with its interval, as texts."""
    return [
        {
            "direction": direction_name(direction),
            "fpir": percent(100 * fpir, 0),
            "measured": interval(of[name]["fpir"]).split(" ", 1),
            "dir": interval(of[name]["dir"]).split(" ", 1),
            "gallery": (f"{of['gallery_people']} people,", f"{of['gallery_images']} images"),
        }
        for direction, of in figures["open_set"].items()
        for name, fpir in OPEN_SET_FPIRS.items()
        if name in of
    ]


# The searches between two cameras alone, as a grid of camera pairs (a heat map).


Rows = Sequence[Mapping[str, str]]  # of evaluation/camera_pairs.csv

CAMERAS = 32  # at most, of the queries, of the gallery and of each modality, to bound the page
ROOMY = 8  # up to this many gallery cameras a cell has room for two figures


@dataclass(frozen=True)
class Cell:
    rank1: float
    mAP: float
    queries: int
    share: float  # percent of the best rank-1 of all cells: the shade
    text: str
    title: str


@dataclass(frozen=True)
class CameraGrid:
    """Rows are query cameras, columns gallery cameras; a cell without a figure is None."""

    direction: str
    name: str
    across: list[str]
    down: list[str]
    cells: list[list[Cell | None]]
    left_out: int  # cameras of camera_pairs.csv that are not shown

    @property
    def roomy(self) -> bool:
        return len(self.across) <= ROOMY


def camera_grids(rows: Rows) -> list[CameraGrid]:
    """One grid for each direction."""
    rows = [row for row in rows if row["queries"]]  # without the row for the pairs left out
    best = max((float(row["rank1"]) for row in rows if row["rank1"]), default=0.0)
    return [
        _grid(direction, [row for row in rows if row["direction"] == direction], best)
        for direction in dict.fromkeys(row["direction"] for row in rows)
    ]


def share(value: float, whole: float) -> float:
    """Percent of a whole, for lengths in CSS; 0 if the whole is 0."""
    return round(100 * value / whole, 2) if whole else 0.0


def _grid(direction: str, rows: Rows, best: float) -> CameraGrid:
    columns = ("query_camera", "gallery_camera")
    down, across = (_busiest(rows, column) for column in columns)
    found = {(row["query_camera"], row["gallery_camera"]): row for row in rows}
    return CameraGrid(
        direction,
        direction_name(direction),
        across,
        down,
        [[_cell(found.get((query, gallery)), best) for gallery in across] for query in down],
        sum(max(0, len({row[column] for row in rows}) - CAMERAS) for column in columns),
    )


def _busiest(rows: Rows, column: str) -> list[str]:
    """The CAMERAS cameras of a column with the most queries, in the order of the rows."""
    queries: Counter[str] = Counter()
    for row in rows:
        queries[row[column]] += int(row["queries"])
    most = {camera for camera, _ in queries.most_common(CAMERAS)}
    return [camera for camera in queries if camera in most]


def _cell(row: Mapping[str, str] | None, best: float) -> Cell | None:
    if not (row and row["rank1"]):
        return None
    rank1, mean_ap, queries = float(row["rank1"]), float(row["mAP"]), int(row["queries"])
    title = f"rank-1 {percent(rank1)}, mAP {percent(mean_ap)}, {queries} quer{'y' if queries == 1 else 'ies'}"
    return Cell(rank1, mean_ap, queries, share(rank1, best), f"{rank1:.0f}", title)


def pairs_by_rank1(rows: Rows, least_queries: int) -> list[dict[str, Any]]:
    """Rows with at least `least_queries` queries, the lowest rank1 first; rank1 and queries as numbers."""
    known = [
        {**row, "rank1": float(row["rank1"]), "queries": int(row["queries"])}
        for row in rows
        if row["rank1"] and int(row["queries"]) >= least_queries
    ]
    return sorted(known, key=lambda row: row["rank1"])


# The ablation: metrics/ablation.json, which benchmarks/ablation.py measures. The project ships the file
# without a table, so the page shows only what was measured in this copy of the project.

METHOD = "sii"  # the variant that is CSDN
DIRECTIONS = {"ir_to_vis": "Infrared → visible", "vis_to_ir": "Visible → infrared"}
# Of metrics/headline.json; some protocols have one direction only.
AblationFigure = Literal["ir_to_vis.rank1", "ir_to_vis.mAP", "vis_to_ir.rank1", "vis_to_ir.mAP"]
ABLATION_FIGURES: tuple[AblationFigure, ...] = get_args(AblationFigure)
# Sections and keys of params.yaml that do not decide the figures, or that the hash of the data covers.
_UNDECISIVE = ("seed", "ingest", "report", "scaling", "warm_start", "gate", "retrain", "registry")
NAMED = 4  # differing parameters that a remark names


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Spread(_Part):
    """Mean and sample deviation over the seeds, percent; no deviation of one seed."""

    mean: Annotated[float, Field(ge=0, le=100)]
    std: Annotated[float, Field(ge=0)] | None


class Variant(_Part):
    variant: str
    difference: str  # in words
    seeds: Annotated[list[int], Field(min_length=1)]
    figures: dict[AblationFigure, Spread]


class AblationTable(_Part):
    """The variants over their seeds, and what all their trainings have in common."""

    commit: str
    data: str  # MD5 of data/samples.parquet
    protocol: str
    test_people: int
    parameters: dict[str, Any]  # by dotted key
    variants: Annotated[list[Variant], Field(min_length=1)]

    @model_validator(mode="after")
    def _same_figures(self) -> AblationTable:
        if len({tuple(sorted(variant.figures)) for variant in self.variants}) > 1:
            raise ValueError("the variants have different figures")
        return self


class AblationFile(_Part):
    format: Literal[2] = 2
    measured: AblationTable | None


def read_ablation(path: Path) -> AblationTable | None:
    """The table in a file; None if it has none or does not exist. Raises UserError if it is damaged."""
    if not path.exists():
        return None
    try:
        return AblationFile.model_validate(read_json(path)).measured
    except ValidationError as error:
        fault = error.errors()[0]
        reason = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
    except UserError as error:
        reason = str(error)
    raise UserError(
        f"{path}: not a table of the ablation ({reason}); measure it again with "
        f"`python benchmarks/ablation.py`, or take back what Git has: git checkout -- {path}"
    )


def decisive(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, by dotted key, that decide the figures."""
    return {key: value for key, value in parameters.items() if key.partition(".")[0] not in _UNDECISIVE}


def data_hash(samples: Path) -> str:
    """DVC's hash of the file (MD5)."""
    with samples.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def ablation_shown(table: AblationTable | None, params: Params, data: str) -> dict[str, Any] | None:
    """The values of the section; None without a table. data: MD5 of the data of this page's model."""
    if table is None:
        return None
    figures = [name for name in ABLATION_FIGURES if name in table.variants[0].figures]
    directions = [name.partition(".")[0] for name in figures]
    return {
        "groups": [(DIRECTIONS[name], directions.count(name)) for name in dict.fromkeys(directions)],
        "columns": [FIGURE_NAMES[name.partition(".")[2]] for name in figures],
        "rows": [
            {
                "variant": one.variant,
                "difference": one.difference,
                "style": "trained" if one.variant == METHOD else "",
                "cells": [number(one.figures[name].model_dump()) for name in figures],
            }
            for one in table.variants
        ],
        "measured": _measured(table),
        "remarks": _remarks(table, params, data),
    }


def _measured(table: AblationTable) -> str:
    """A sentence on the trainings behind the figures."""
    seeds = {tuple(one.seeds) for one in table.variants}
    if len(seeds) == 1:
        (numbers,) = seeds
        plural = "s" * (len(numbers) > 1)
        trained = (
            f"{len(numbers)} training{plural} of each variant, seed{plural} {', '.join(map(str, numbers))}"
        )
    else:
        trained = "Trainings of each variant, not all of the same seeds"
    where = f"at commit {table.commit[:12]}; protocol {table.protocol}, {table.test_people} test people"
    return f"{trained}, {where}."


def _remarks(table: AblationTable, params: Params, data: str) -> list[str]:
    """Differences between the table's data and parameters and this page's."""
    found = []
    if table.data != data:
        found.append("This table was measured on other data than the rest of this page.")
    differing = [
        f"{key} {table.parameters[key]} (here {value})"
        for key, value in decisive(dict(leaves(params.model_dump()))).items()
        if key in table.parameters and table.parameters[key] != value
    ]
    if differing:
        more = f", and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
        named = ", ".join(differing[:NAMED]) + more
        found.append(f"This table was measured with other parameters than the rest of this page: {named}.")
    return found


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
    more = len(remarks) - REMARKS
    return remarks if more <= 0 else [*remarks[:REMARKS], f"{more} more remarks in metrics/ingest.json."]


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
