"""Distances between images of one person and of two people, within and across modalities.

A distance in the report is always the cosine distance of two features, 1 - cosine: 0 is the same direction,
1 a right angle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from csdn.data.catalog import Modality, SampleTable
from csdn.report.charts import Curves, Series, density
from csdn.report.wording import METHOD_NAMES

IMAGES = 1000  # of each modality at most, evenly spaced over the table: a million pairs
BEFORE_AFTER = ("clip", "trained")  # methods: before and after training
KINDS = {
    "Visible – visible": (Modality.VISIBLE, Modality.VISIBLE),
    "Infrared – infrared": (Modality.INFRARED, Modality.INFRARED),
    "Visible – infrared": (Modality.VISIBLE, Modality.INFRARED),
}


@dataclass(frozen=True)
class Pairs:
    """Cosine distances of pairs of images."""

    same: np.ndarray
    other: np.ndarray

    def known(self) -> bool:
        """Whether there are pairs of both kinds."""
        return bool(len(self.same) and len(self.other))

    def area(self) -> float:
        """Area under the ROC curve: share of (same, other) pairs with same nearer; a tie counts a half."""
        others = np.sort(self.other)
        below = np.searchsorted(others, self.same, side="left")
        not_above = np.searchsorted(others, self.same, side="right")
        return 1 - float((below + not_above).mean() / (2 * len(others)))


@dataclass(frozen=True)
class Panel:
    """One kind of pair, before and after training; `areas` are shares 0..1 by method."""

    kind: str
    curves: list[Curves]
    areas: dict[str, float]


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32."""
    units = features.astype(np.float32)
    return units / np.linalg.norm(units, axis=1, keepdims=True)


def image_pairs(features: np.ndarray, table: SampleTable, first: Modality, second: Modality) -> Pairs:
    """Pairs of evenly spaced images of two modalities; features [n, D] of the table's rows.

    Within one modality each pair counts once, and no image is paired with itself.
    """
    one, two = (_evenly(table.of(modality)) for modality in (first, second))
    distances = 1 - unit_rows(features[one]) @ unit_rows(features[two]).T
    same = table.label[one][:, None] == table.label[two]
    counted = one[:, None] < two if first == second else np.ones_like(same)
    return Pairs(distances[same & counted], distances[~same & counted])


def distance_panels(features: Mapping[str, np.ndarray], table: SampleTable) -> list[Panel]:
    """A panel for each kind of pair that the test images have, all with the same axes."""
    found = {
        kind: {method: image_pairs(features[method], table, *modalities) for method in BEFORE_AFTER}
        for kind, modalities in KINDS.items()
    }
    found = {kind: pairs for kind, pairs in found.items() if all(map(Pairs.known, pairs.values()))}
    distances = [part for pairs in found.values() for p in pairs.values() for part in (p.same, p.other)]
    high = max((float(part.max()) for part in distances), default=1.0)
    tallest = max((float(density(part, 0.0, high)[1].max()) for part in distances), default=1.0)
    return [
        Panel(
            kind,
            [_curves(METHOD_NAMES[method], pairs[method], high, tallest) for method in BEFORE_AFTER],
            {method: pairs[method].area() for method in BEFORE_AFTER},
        )
        for kind, pairs in found.items()
    ]


def _curves(title: str, pairs: Pairs, high: float, tallest: float) -> Curves:
    series = [
        Series(name, style, *density(values, 0.0, high), filled=True)
        for name, style, values in (("one person", "same", pairs.same), ("two people", "other", pairs.other))
    ]
    return Curves(title, series, "cosine distance", "pairs, %", (0.0, high), tallest)


def _evenly(rows: np.ndarray) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, min(IMAGES, len(rows))).round().astype(int)]
