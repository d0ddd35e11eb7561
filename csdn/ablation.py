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
from pathlib import Path

from csdn.errors import UserError
from csdn.params import load_params

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
# Column of `dvc exp show` -> head of the table. Some protocols have one direction only.
FIGURES: Mapping[str, str] = {
    "ir_to_vis.rank1": "IR → VIS rank-1",
    "ir_to_vis.mAP": "IR → VIS mAP",
    "vis_to_ir.rank1": "VIS → IR rank-1",
    "vis_to_ir.mAP": "VIS → IR mAP",
}
_NAME = re.compile(r"ablation-(.+)-seed-(\d+)")


@dataclass(frozen=True)
class Line:
    """One variant over its seeds: mean and sample deviation of each figure, in percent."""

    variant: str
    seeds: tuple[int, ...]
    figures: Mapping[str, tuple[float, float | None]]


def experiment_name(variant: str, seed: int) -> str:
    return f"ablation-{variant}-seed-{seed}"


def command(variant: str, seed: int, copied: Sequence[str] = ()) -> list[str]:
    """The command that queues one experiment; `dvc exp run --run-all` runs what is queued.

    copied: files and folders outside Git that DVC takes into its copy of the project.
    """
    changes = {"seed": seed, **VARIANTS[variant]}
    settings = [part for key, value in changes.items() for part in ("-S", f"{key}={value}")]
    name = ["--queue", "--force", "--name", experiment_name(variant, seed)]
    copies = [part for path in copied for part in ("--copy-paths", path)]
    return [sys.executable, "-m", "dvc", "exp", "run", *name, *copies, *settings]


def queue(variants: Sequence[str], seeds: Iterable[int]) -> int:
    """Queue every variant with every seed; returns how many. Raises UserError."""
    if unknown := [name for name in variants if name not in VARIANTS]:
        raise UserError(f"no variant is called {', '.join(unknown)}; there are: {', '.join(VARIANTS)}")
    copied = outside_git(load_params().model.weights)
    runs = [command(variant, seed, copied) for seed in seeds for variant in variants]
    for run in runs:
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"dvc could not queue {run[run.index('--name') + 1]}:\n{done.stderr.strip()}")
    return len(runs)


def outside_git(weights: str) -> list[str]:
    """What of the weights a clone of the project lacks: nothing, their folder, or the file alone.

    DVC copies a file only into a folder that is there, so a folder that Git does not have is copied whole.
    """
    if _in_git(weights):
        return []
    folder = str(Path(weights).parent)
    return [weights if _in_git(folder) else folder]


def _in_git(path: str) -> bool:
    done = subprocess.run(["git", "ls-files", "--", path], capture_output=True, check=False)
    return bool(done.stdout)


def measured() -> list[Line]:
    """Every variant that experiments on this commit have measured, in the order of VARIANTS.

    Those on other commits are left out: their code was another.
    """
    dvc = [sys.executable, "-m", "dvc", "exp", "show", "--csv"]
    done = subprocess.run(dvc, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"dvc could not show the experiments:\n{done.stderr.strip()}")
    return lines(csv.DictReader(done.stdout.splitlines()))


def lines(rows: Iterable[Mapping[str, str]]) -> list[Line]:
    """Rows of `dvc exp show --csv` -> a line for each variant, with the figures that all of them have.

    Experiments without figures are left out; of several rows of a name the first counts, DVC's newest.
    """
    found: dict[str, dict[int, dict[str, float]]] = {}
    for row in rows:
        named = _NAME.fullmatch(row.get("Experiment") or "")
        values = {figure: float(row[figure]) for figure in FIGURES if row.get(figure)}
        if named and named[1] in VARIANTS and values:
            found.setdefault(named[1], {}).setdefault(int(named[2]), values)
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
