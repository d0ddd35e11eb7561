"""The ablation: which part of the method brings what, as DVC experiments over seeds.

Every variant is the parameters of params.yaml with a few of them changed, so that its stages are cached and
compared like any other experiment. Names tell variant and seed: `ablation-no-msel-seed-2`. What queues and
reads the experiments is csdn.cli.ablation.
"""

from __future__ import annotations

import hashlib
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from csdn.params import Params, leaves
from csdn.report.sections import FIGURE_NAMES, number
from csdn.runtime.documents import read_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import write_json

NO_TEXT = {"embedding.losses.hse_visible": 0.0, "embedding.losses.hse_infrared": 0.0}

# Name -> the parameters that it changes. The first six differ in what stage 2 takes as a person's text.
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "baseline": NO_TEXT,
    "shared": {"model.integration": "shared"},
    "visible": {"model.integration": "visible"},
    "infrared": {"model.integration": "infrared"},
    "sum": {"model.integration": "sum"},
    "concat": {"model.integration": "concat"},
    "sii": {"model.integration": "sii"},
    "no-msel": {"embedding.losses.msel": 0.0},
    "no-triplet": {"embedding.losses.triplet": 0.0},
    "hse-visible": {"embedding.losses.hse_infrared": 0.0},
    "hse-infrared": {"embedding.losses.hse_visible": 0.0},
}
# Figure of metrics/headline.json -> head of the table. Some protocols have one direction only.
FIGURES: Mapping[str, str] = {
    "ir_to_vis.rank1": "IR → VIS rank-1",
    "ir_to_vis.mAP": "IR → VIS mAP",
    "vis_to_ir.rank1": "VIS → IR rank-1",
    "vis_to_ir.mAP": "VIS → IR mAP",
}
_NAME = re.compile(r"ablation-(.+)-seed-(\d+)")


@dataclass(frozen=True)
class Experiment:
    """What DVC knows of one finished run of a variant."""

    variant: str
    seed: int
    figures: Mapping[str, float]  # those of FIGURES that its protocol has, percent
    test_people: int
    parameters: Mapping[str, object]  # leaves of its params.yaml, by dotted key
    data: str  # MD5 of its data/samples.parquet


@dataclass(frozen=True)
class Line:
    """One variant over its seeds: mean and sample deviation of each figure, in percent."""

    variant: str
    seeds: tuple[int, ...]
    figures: Mapping[str, tuple[float, float | None]]


def experiment_name(variant: str, seed: int) -> str:
    return f"ablation-{variant}-seed-{seed}"


def variant_and_seed(name: str) -> tuple[str, int] | None:
    """The inverse of `experiment_name`; None for the name of any other experiment."""
    named = _NAME.fullmatch(name)
    return (named[1], int(named[2])) if named and named[1] in VARIANTS else None


def lines(experiments: Iterable[Experiment]) -> list[Line]:
    """A line for each variant, in the order of VARIANTS, with the figures that all of them have.

    Of several experiments of a name the first counts, DVC's newest.
    """
    found: dict[str, dict[int, Mapping[str, float]]] = {}
    for one in experiments:
        found.setdefault(one.variant, {}).setdefault(one.seed, one.figures)
    measured_by_all = [
        figure
        for figure in FIGURES
        if all(figure in values for by_seed in found.values() for values in by_seed.values())
    ]
    return [_line(name, found[name], measured_by_all) for name in VARIANTS if name in found]


def _line(variant: str, by_seed: Mapping[int, Mapping[str, float]], figures: Sequence[str]) -> Line:
    spreads = {figure: _spread([values[figure] for values in by_seed.values()]) for figure in figures}
    return Line(variant, tuple(sorted(by_seed)), spreads)


def _spread(values: Sequence[float]) -> tuple[float, float | None]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def table(found: Sequence[Line]) -> list[str]:
    """Markdown of one line or more: mean and deviation over the seeds, in percent."""
    head = ["variant", "seeds", *(FIGURES[figure] for figure in found[0].figures)]
    rows = [[line.variant, str(len(line.seeds)), *map(_cell, line.figures.values())] for line in found]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _cell(figure: tuple[float, float | None]) -> str:
    mean, deviation = figure
    return f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


# metrics/ablation.json: the ablation's table as it was measured, with what it was measured on.
#
# The project ships it without a table: what the report shows is what was measured where it stands.


FORMAT = 1
# Sections and keys of params.yaml that are the run's own, or that the data's hash stands for.
_LEFT_OUT = ("seed", "ingest", "report", "scaling", "warm", "gate", "retrain", "registry")
_PROVENANCE = ("commit", "data", "protocol", "test_people", "parameters")


@dataclass(frozen=True)
class Table:
    """The variants over their seeds, and what all of their experiments had in common."""

    lines: Sequence[Line]
    commit: str
    data: str  # MD5 of data/samples.parquet
    protocol: str
    test_people: int
    parameters: Mapping[str, Any]  # by dotted key, without those that a variant changes in all experiments


def measured_table(commit: str, experiments: Sequence[Experiment]) -> Table:
    """The experiments of a commit (one at least) as a table.

    Raises UserError where they had other parameters or data than one another, beside what the variants
    change: they have no common table.
    """
    first, common = experiments[0], {}
    for one in experiments:
        if one.data != first.data:
            raise _unlike(first, one, "data", first.data[:12], one.data[:12])
        for key, value in _decisive(one.parameters, VARIANTS[one.variant]).items():
            owner, known = common.setdefault(key, (one, value))
            if known != value:
                raise _unlike(owner, one, key, known, value)
    parameters = {key: value for key, (_, value) in common.items()}
    return Table(
        lines=lines(experiments),
        commit=commit,
        data=first.data,
        protocol=parameters["evaluation.protocol"],
        test_people=first.test_people,
        parameters=parameters,
    )


def _decisive(parameters: Mapping[str, Any], without: Mapping[str, Any] = {}) -> dict[str, Any]:
    return {
        key: value
        for key, value in parameters.items()
        if key.partition(".")[0] not in _LEFT_OUT and key not in without
    }


def _unlike(one: Experiment, other: Experiment, what: str, value: object, other_value: object) -> UserError:
    names = [experiment_name(run.variant, run.seed) for run in (one, other)]
    return UserError(
        f"{names[0]} ran with {what} = {value}, {names[1]} with {other_value}; they have no common table: "
        "queue them again on what should be measured (csdn ablation, dvc exp run --run-all)"
    )


def other_parameters(table: Table, parameters: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs: key -> (the table's, that of `parameters`)."""
    return {
        key: (table.parameters[key], value)
        for key, value in _decisive(parameters).items()
        if key in table.parameters and table.parameters[key] != value
    }


def data_hash(samples: Path) -> str:
    """The hash by which DVC knows the file (MD5)."""
    with samples.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def write_table(path: Path, table: Table) -> None:
    variants = [
        {
            "variant": line.variant,
            "seeds": list(line.seeds),
            "figures": {name: {"mean": mean, "std": std} for name, (mean, std) in line.figures.items()},
        }
        for line in table.lines
    ]
    provenance = {name: getattr(table, name) for name in _PROVENANCE}
    write_json(path, {"format": FORMAT, "measured": {**provenance, "variants": variants}})


def read_table(path: Path) -> Table | None:
    """The table of a file; None where it holds none, or is not there. Raises UserError for anything else."""
    if not path.exists():
        return None
    try:
        found = _File.model_validate(read_json(path)).measured
    except ValidationError as error:
        fault = error.errors()[0]
        raise _damaged(path, f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
    except UserError as error:
        raise _damaged(path, str(error)) from None
    if found is None:
        return None
    return Table(
        [_file_line(variant) for variant in found.variants],
        **found.model_dump(exclude={"variants"}),
    )


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path}: not a table of the ablation ({reason}); write it again with `csdn table --out {path}`, "
        f"or take back what Git has: git checkout -- {path}"
    )


def _file_line(variant: _Variant) -> Line:
    # In the order of FIGURES: the file's is alphabetical.
    figures = {
        name: (variant.figures[name].mean, variant.figures[name].std)
        for name in FIGURES
        if name in variant.figures
    }
    return Line(variant.variant, tuple(variant.seeds), figures)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Figure(_Part):
    mean: Annotated[float, Field(ge=0, le=100)]
    std: Annotated[float, Field(ge=0)] | None


class _Variant(_Part):
    variant: str
    seeds: Annotated[list[int], Field(min_length=1)]
    figures: dict[Literal["ir_to_vis.rank1", "ir_to_vis.mAP", "vis_to_ir.rank1", "vis_to_ir.mAP"], _Figure]


class _Measured(_Part):
    commit: str
    data: str
    protocol: str
    test_people: int
    parameters: dict[str, Any]
    variants: Annotated[list[_Variant], Field(min_length=1)]

    @model_validator(mode="after")
    def _same_figures(self) -> _Measured:
        if len({tuple(sorted(variant.figures)) for variant in self.variants}) > 1:
            raise ValueError("the variants have different figures")
        return self


class _File(_Part):
    format: Literal[1]
    measured: _Measured | None


# The ablation's table, where one was measured, and what it was measured on.


METHOD = "sii"  # the variant that is CSDN
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
