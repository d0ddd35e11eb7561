"""The ablation's table, where one was measured, and what it was measured on."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from csdn.ablation_file import Table, other_parameters
from csdn.params import Params, leaves
from csdn.report.results import FIGURE_NAMES, number

METHOD = "attention"  # the variant that is CSDN
DIFFERENCES = {
    "baseline": "no text in stage 2",
    "shared": "one prompt for both modalities",
    "visible": "the visible text alone",
    "infrared": "the infrared text alone",
    "sum": "the sum of both texts",
    "concat": "a linear map of both texts",
    METHOD: "SII: the method",
    "no-msel": "without MSEL",
    "no-triplet": "without the triplet loss",
    "hse-visible": "text for visible images alone",
    "hse-infrared": "text for infrared images alone",
}
DIRECTIONS = {"ir_to_vis": "Infrared → visible", "vis_to_ir": "Visible → infrared"}
NAMED = 4  # differing parameters that are spelt out


def ablation_shown(table: Table | None, params: Params, data: str) -> dict[str, Any] | None:
    """The table's section; None without a table. data: MD5 of the data that this page's model has."""
    if table is None:
        return None
    figures = [name.split(".") for name in table.lines[0].figures]
    groups = [(name, len(list(of))) for name, of in groupby(direction for direction, _ in figures)]
    return {
        "groups": [(DIRECTIONS[name], count) for name, count in groups],
        "columns": [FIGURE_NAMES[figure] for _, figure in figures],
        "rows": [
            {
                "variant": line.variant,
                "difference": DIFFERENCES.get(line.variant, ""),
                "style": "trained" if line.variant == METHOD else "",
                "cells": [number({"mean": mean, "std": std}) for mean, std in line.figures.values()],
            }
            for line in table.lines
        ],
        "measured": measured(table),
        "remarks": remarks(table, params, data),
    }


def measured(table: Table) -> str:
    """How the figures came about, as one sentence."""
    seeds = {line.seeds for line in table.lines}
    if len(seeds) == 1:
        (numbers,) = seeds
        trained = f"{len(numbers)} training{'s' * (len(numbers) > 1)} of each variant"
        trained += f", seed{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
    else:
        counts = sorted({len(one) for one in seeds})
        number_of = " to ".join(map(str, (counts[0], counts[-1])[: len(counts)]))
        trained = f"{number_of} trainings of each variant, not all of the same seeds"
    where = f"at commit {table.commit[:12]}; protocol {table.protocol}, {table.test_people} test people"
    return f"{trained}, {where}."


def remarks(table: Table, params: Params, data: str) -> list[str]:
    """What keeps the table from being about this page's model; nothing where both are of one kind."""
    found = []
    if table.data != data:
        found.append("This table was measured on other data than the rest of this page.")
    differing = other_parameters(table, dict(leaves(params.model_dump())))
    if differing:
        found.append(
            f"This table was measured with other parameters than the rest of this page: {_named(differing)}."
        )
    return found


def _named(differing: Mapping[str, tuple[Any, Any]]) -> str:
    named = [f"{key} {theirs} (here {ours})" for key, (theirs, ours) in list(differing.items())[:NAMED]]
    more = len(differing) - len(named)
    return ", ".join(named) + (f", and {more} more" if more else "")
