"""The ablation: which part of the method brings what, as DVC experiments over seeds.

Every variant is the parameters of params.yaml with a few of them changed, so that its stages are cached and
compared like any other experiment. Names tell variant and seed: `ablation-no-msel-seed-2`.
"""

from __future__ import annotations

import csv
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from csdn.errors import UserError

NO_TEXT = {"embedding.losses.hse_visible": 0.0, "embedding.losses.hse_infrared": 0.0}

# Name -> the parameters that it changes. The first six differ in what stage 2 takes as a person's text.
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "baseline": NO_TEXT,
    "shared": {"model.integration": "shared"},
    "visible": {"model.integration": "visible"},
    "infrared": {"model.integration": "infrared"},
    "sum": {"model.integration": "sum"},
    "concat": {"model.integration": "concat"},
    "attention": {"model.integration": "attention"},
    "no-msel": {"embedding.losses.msel": 0.0},
    "no-triplet": {"embedding.losses.triplet": 0.0},
    "hse-visible": {"embedding.losses.hse_infrared": 0.0},
    "hse-infrared": {"embedding.losses.hse_visible": 0.0},
}
FIGURES = ("ir_to_vis.rank1", "ir_to_vis.mAP", "vis_to_ir.rank1", "vis_to_ir.mAP")
_NAME = re.compile(r"ablation-(.+)-seed-(\d+)")


@dataclass(frozen=True)
class Line:
    """One variant over its seeds: mean and sample deviation of each figure, in percent."""

    variant: str
    seeds: tuple[int, ...]
    figures: Mapping[str, tuple[float, float | None]]


def experiment_name(variant: str, seed: int) -> str:
    return f"ablation-{variant}-seed-{seed}"


def command(variant: str, seed: int) -> list[str]:
    """The command that queues one experiment; `dvc exp run --run-all` runs what is queued."""
    changes = {"seed": seed, **VARIANTS[variant]}
    settings = [part for key, value in changes.items() for part in ("-S", f"{key}={value}")]
    name = ["--queue", "--force", "--name", experiment_name(variant, seed)]
    return [sys.executable, "-m", "dvc", "exp", "run", *name, *settings]


def queue(variants: Sequence[str], seeds: Iterable[int]) -> int:
    """Queue every variant with every seed; returns how many. Raises UserError."""
    if unknown := [name for name in variants if name not in VARIANTS]:
        raise UserError(f"no variant is called {', '.join(unknown)}; there are: {', '.join(VARIANTS)}")
    runs = [command(variant, seed) for seed in seeds for variant in variants]
    for run in runs:
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"dvc could not queue {run[run.index('--name') + 1]}:\n{done.stderr.strip()}")
    return len(runs)


def measured() -> list[Line]:
    """Every variant that experiments of this repository have measured, in the order of VARIANTS."""
    dvc = [sys.executable, "-m", "dvc", "exp", "show", "--all-commits", "--csv"]
    done = subprocess.run(dvc, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"dvc could not show the experiments:\n{done.stderr.strip()}")
    return lines(csv.DictReader(done.stdout.splitlines()))


def lines(rows: Iterable[Mapping[str, str]]) -> list[Line]:
    """Rows of `dvc exp show --csv` -> a line for each variant; experiments without figures are left out."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        named = _NAME.fullmatch(row.get("Experiment") or "")
        values = [row.get(figure) for figure in FIGURES]
        if named and all(values):
            found.setdefault(named[1], {})[int(named[2])] = [float(value) for value in values if value]
    return [_line(name, found[name]) for name in VARIANTS if name in found]


def _line(variant: str, by_seed: Mapping[int, Sequence[float]]) -> Line:
    columns = zip(*by_seed.values(), strict=True)
    return Line(
        variant,
        tuple(sorted(by_seed)),
        {figure: _spread(values) for figure, values in zip(FIGURES, columns, strict=True)},
    )


def _spread(values: Sequence[float]) -> tuple[float, float | None]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def table(found: Sequence[Line]) -> list[str]:
    """Markdown: mean and deviation over the seeds, in percent."""
    head = ["variant", "seeds", "IR → VIS rank-1", "mAP", "VIS → IR rank-1", "mAP"]
    rows = [[line.variant, str(len(line.seeds)), *map(_cell, line.figures.values())] for line in found]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _cell(figure: tuple[float, float | None]) -> str:
    mean, deviation = figure
    return f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")
