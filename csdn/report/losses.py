"""The training logs as small charts: the two phases of stage 1, then stage 2 and its terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from csdn.report.figures import Curves, Series

Rows = Sequence[Mapping[str, str]]  # of a log.csv

POINTS = 400  # of a line at most: more would be narrower than a pixel
# Title -> columns of models/embedding/log.csv with the names that they get.
EMBEDDING_CHARTS = {
    "Stage 2: sum of all terms": {"total": "total"},
    "Stage 2: identity": {"id_gem": "GeM", "id_pool": "attention pool"},
    "Stage 2: triplet": {"triplet_gem": "GeM", "triplet_pool": "attention pool"},
    "Stage 2: MSEL": {"msel_gem": "GeM", "msel_pool": "attention pool"},
    "Stage 2: HSE": {"hse_visible": "visible", "hse_infrared": "infrared"},
}
PHASE_TITLES = {"prompts": "Stage 1: prompts", "integration": "Stage 1: integration"}


def loss_curves(prompts_log: Rows, embedding_log: Rows) -> list[Curves]:
    """One chart for each phase of stage 1 that was trained, then those of stage 2, over the steps."""
    charts = []
    for phase, title in PHASE_TITLES.items():
        if rows := [row for row in prompts_log if row["phase"] == phase]:
            charts.append(_curves(title, rows, {"loss": "loss"}))
    return charts + [_curves(title, embedding_log, names) for title, names in EMBEDDING_CHARTS.items()]


def _curves(title: str, rows: Rows, names: Mapping[str, str]) -> Curves:
    every = -(-len(rows) // POINTS)
    groups = [rows[start : start + every] for start in range(0, len(rows), every)]
    steps = [float(group[-1]["step"]) for group in groups]
    series = [
        Series(name, style, steps, [_mean(group, column) for group in groups])
        for (column, name), style in zip(names.items(), ("first", "second"), strict=False)
    ]
    return Curves(title, series, "step", "loss")


def _mean(rows: Rows, column: str) -> float:
    return sum(float(row[column]) for row in rows) / len(rows)
