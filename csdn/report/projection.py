"""Features of some test people in two dimensions, by principal component analysis.

Unlike t-SNE or UMAP it is deterministic, and a distance in the plane is never longer than the true one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from csdn.data.catalog import Dataset, SampleTable
from csdn.report.distances import BEFORE_AFTER, unit_rows
from csdn.report.images import person_names
from csdn.report.wording import METHOD_NAMES

PEOPLE = 10  # as many as there are colours in style.css.j2
IMAGES_SHOWN = 12  # of each person and modality at most, evenly spaced over the table
SIZE, MARGIN = (420, 360), 24


@dataclass(frozen=True)
class Plane:
    """Points [n, 2] of images with their person (0..) and modality (0 visible, 1 infrared).

    `explained` are the two axes' shares of the total variance; `between_people` and `between_modalities` are
    its shares, in all dimensions, between the means of people and of modalities; 0..1.
    """

    title: str
    points: np.ndarray
    person: np.ndarray
    modality: np.ndarray
    explained: tuple[float, float]
    between_people: float
    between_modalities: float

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
    return [
        _plane(METHOD_NAMES[m], unit_rows(features[m][rows]), person, modality) for m in BEFORE_AFTER
    ], people


def _plane(title: str, units: np.ndarray, person: np.ndarray, modality: np.ndarray) -> Plane:
    points, explained = principal_plane(units)
    return Plane(
        title,
        points,
        person,
        modality,
        explained,
        share_between(units, person),
        share_between(units, modality),
    )


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


@dataclass(frozen=True)
class Mark:
    """A point of an SVG scatter plot; `style` is its person's CSS class."""

    x: float
    y: float
    style: str
    infrared: bool


@dataclass(frozen=True)
class Link:
    """From the mean of a person's visible images, with the person's number, to that of the infrared ones."""

    x1: float
    y1: float
    x2: float
    y2: float
    style: str
    number: int


@dataclass(frozen=True)
class Scatter:
    title: str
    marks: list[Mark]
    links: list[Link]
    explained: tuple[str, str]  # percent of the axes, as text
    width: int
    height: int


def scatter(plane: Plane) -> Scatter:
    """A plane as geometry, with the same scale on both axes."""
    width, height = SIZE
    low, high = plane.points.min(axis=0), plane.points.max(axis=0)
    scale = min((SIZE[axis] - 2 * MARGIN) / max(high[axis] - low[axis], 1e-9) for axis in (0, 1))
    middle = (low + high) / 2

    def position(point: np.ndarray) -> tuple[float, float]:
        x, y = (point - middle) * scale
        return round(width / 2 + float(x), 1), round(height / 2 - float(y), 1)

    marks = [
        Mark(*position(point), f"p{person}", bool(code))
        for point, person, code in zip(plane.points, plane.person, plane.modality, strict=True)
    ]
    links = []
    for person in np.unique(plane.person):
        ends = [position(points.mean(axis=0)) for points in plane.images_of(person)]
        links.append(Link(*ends[0], *ends[1], f"p{person}", int(person) + 1))
    explained = tuple(f"{100 * value:.0f}" for value in plane.explained)
    return Scatter(plane.title, marks, links, explained, width, height)


def _evenly_spread(values: np.ndarray, count: int) -> np.ndarray:
    return values[np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int)]
