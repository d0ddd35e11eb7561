"""What training does to the features of the test images: distances between them, and a plane of some people.

A distance in the report is always the cosine distance of two features, 1 - cosine: 0 is the same direction,
1 a right angle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from csdn.data.catalog import Dataset, Modality, SampleTable
from csdn.report.wording import METHOD_NAMES

BEFORE_AFTER = ("clip", "trained")  # methods: before and after training


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32."""
    units = features.astype(np.float32)
    return units / np.linalg.norm(units, axis=1, keepdims=True)


def _evenly_spread(values: np.ndarray, count: int) -> np.ndarray:
    return values[np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)]


# Distances between images of one person and of two people, within and across modalities.

IMAGES = 1000  # of each modality at most, evenly spaced over the table: a million pairs
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


def image_pairs(features: np.ndarray, table: SampleTable, first: Modality, second: Modality) -> Pairs:
    """Pairs of evenly spaced images of two modalities; features [n, D] of the table's rows.

    Within one modality each pair counts once, and no image is paired with itself.
    """
    one, two = (_evenly_spread(table.of(modality), IMAGES) for modality in (first, second))
    distances = 1 - unit_rows(features[one]) @ unit_rows(features[two]).T
    same = table.label[one][:, None] == table.label[two]
    counted = one[:, None] < two if first == second else np.ones_like(same)
    return Pairs(distances[same & counted], distances[~same & counted])


def pairs_by_kind(features: Mapping[str, np.ndarray], table: SampleTable) -> dict[str, dict[str, Pairs]]:
    """kind -> method -> pairs, of the kinds for which there are pairs of one person and of two people."""
    found = {
        kind: {method: image_pairs(features[method], table, *modalities) for method in BEFORE_AFTER}
        for kind, modalities in KINDS.items()
    }
    return {kind: pairs for kind, pairs in found.items() if all(map(Pairs.known, pairs.values()))}


# Some test people in two dimensions, by principal component analysis. Unlike t-SNE or UMAP it is
# deterministic, and a distance in the plane is never longer than the true one.

PEOPLE = 10  # as many as there are colours
IMAGES_SHOWN = 12  # of each person and modality at most, evenly spaced over the table


@dataclass(frozen=True)
class Plane:
    """Points [n, 2] of images with their person (0..) and modality (0 visible, 1 infrared).

    `explained` are the two axes' shares of the total variance; `between_people` and `between_modalities` are
    its shares, in all dimensions, between the means of people and of modalities; 0..1.
    """

    method: str
    points: np.ndarray
    person: np.ndarray
    modality: np.ndarray
    explained: tuple[float, float]
    between_people: float
    between_modalities: float

    @property
    def title(self) -> str:
        return METHOD_NAMES[self.method]

    def images_of(self, person: int) -> tuple[np.ndarray, np.ndarray]:
        """Points of a person's visible images, and of the infrared ones."""
        return tuple(self.points[(self.person == person) & (self.modality == code)] for code in (0, 1))


def chosen_images(table: SampleTable) -> np.ndarray:
    """Rows of some images of evenly spaced people who have both modalities, by person."""
    both = np.intersect1d(*(table.label[table.modality == code] for code in (0, 1)))
    rows = [
        _evenly_spread(np.flatnonzero((table.label == label) & (table.modality == code)), IMAGES_SHOWN)
        for label in _evenly_spread(both, PEOPLE)
        for code in (0, 1)
    ]
    return np.concatenate(rows) if rows else np.zeros(0, np.int64)


def planes(
    features: Mapping[str, np.ndarray], table: SampleTable, dataset: Dataset
) -> tuple[list[Plane], list[str]]:
    """The plane of each method, and the people's names; empty if fewer than two people can be shown."""
    rows = chosen_images(table)
    labels, person = np.unique(table.label[rows], return_inverse=True)
    if len(labels) < 2:
        return [], []
    names = person_names(dataset)
    people = [names[int(table.person_row[table.label == label][0])] for label in labels]
    modality = table.modality[rows]
    return [_plane(m, unit_rows(features[m][rows]), person, modality) for m in BEFORE_AFTER], people


def person_names(dataset: Dataset) -> dict[int, str]:
    """Canonical names by row of the table of people."""
    people = dataset.people
    return dict(zip(people["row"].to_pylist(), people["person"].to_pylist(), strict=True))


def _plane(method: str, units: np.ndarray, person: np.ndarray, modality: np.ndarray) -> Plane:
    points, explained = principal_plane(units)
    shares = share_between(units, person), share_between(units, modality)
    return Plane(method, points, person, modality, explained, *shares)


def principal_plane(features: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """The first two principal components [n, 2] of features [n, D], and their shares of the variance.

    The sign of a component is such that its largest value is positive.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(features), 2))
    count = min(2, len(sizes))
    points[:, :count] = left[:, :count] * sizes[:count]
    points *= np.where(points[np.abs(points).argmax(axis=0), [0, 1]] < 0, -1, 1)
    shares = np.append(sizes**2 / max(float((sizes**2).sum()), 1e-12), [0.0, 0.0])
    return points, (float(shares[0]), float(shares[1]))


def share_between(features: np.ndarray, groups: np.ndarray) -> float:
    """Share of the variance of features [n, D] that lies between the means of groups [n], 0..1."""
    values = features.astype(np.float64)
    mean = values.mean(axis=0)
    whole = float(((values - mean) ** 2).sum())
    means = np.stack([values[groups == group].mean(axis=0) for group in groups])
    return float(((means - mean) ** 2).sum()) / whole if whole else 0.0
