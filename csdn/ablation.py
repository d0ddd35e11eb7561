"""The ablation: which part of the method brings what, as DVC experiments over seeds.

Every variant is the parameters of params.yaml with a few of them changed, so that its stages are cached and
compared like any other experiment. Names tell variant and seed: `ablation-no-msel-seed-2`. What queues and
reads the experiments is csdn.ablation_runs.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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
