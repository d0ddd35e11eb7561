"""How alike images of one person and of two people are across modalities, before and after training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from csdn.data.dataset import SampleTable
from csdn.data.records import Modality
from csdn.report.figures import Chart, Series, density, line_chart
from csdn.report.words import METHOD_NAMES

IMAGES = 1000  # of each modality at most, evenly spaced over the table: a million pairs


@dataclass(frozen=True)
class Pairs:
    """Cosine similarities of visible-infrared pairs."""

    same: np.ndarray
    other: np.ndarray

    def area(self) -> float:
        """Share of (same, other) comparisons in which the same person is more alike; a tie counts a half."""
        others = np.sort(self.other)
        below = np.searchsorted(others, self.same, side="left")
        not_above = np.searchsorted(others, self.same, side="right")
        return float((below + not_above).mean() / (2 * len(others)))


def cross_modality_pairs(features: np.ndarray, table: SampleTable) -> Pairs:
    """All pairs of evenly spaced visible and infrared images; features [n, D] of the table's rows."""
    visible, infrared = (_evenly(table.of(modality)) for modality in Modality)
    units = features.astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    alike = units[visible] @ units[infrared].T
    same = table.label[visible][:, None] == table.label[infrared]
    return Pairs(alike[same], alike[~same])


def similarity_charts(
    features: Mapping[str, np.ndarray], table: SampleTable
) -> tuple[list[Chart], dict[str, float]]:
    """One chart for CLIP, one for the trained model, and their `area`; empty without both kinds of pair."""
    charts, areas = [], {}
    for method in ("clip", "trained"):
        pairs = cross_modality_pairs(features[method], table)
        if not len(pairs.same) or not len(pairs.other):
            return [], {}
        both = np.concatenate([pairs.same, pairs.other])
        low, high = float(both.min()), float(both.max())
        series = [
            Series(name, style, *density(values, low, high), filled=True)
            for name, style, values in (
                ("one person", "same", pairs.same),
                ("two people", "other", pairs.other),
            )
        ]
        charts.append(line_chart(METHOD_NAMES[method], series, "cosine similarity", "share of pairs, %"))
        areas[method] = pairs.area()
    return charts, areas


def _evenly(rows: np.ndarray) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, min(IMAGES, len(rows))).round().astype(int)]
