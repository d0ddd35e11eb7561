"""Drift: do the images of a camera look like those before? The comparison, from what was measured of them.

`Measured` has statistics and features of a sample of a camera's images (`sampled`); `compare` tests each
camera (csdn.evaluation.two_sample). Features are compared over people whom the model was not trained on: its
features of training people differ from those of all others, whatever the camera. csdn.curation.drift
measures a drop that may not be ingested yet, csdn.report.drift the newest drop of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from csdn.evaluation.two_sample import (
    ALPHA,
    MIN_PEOPLE,
    STATISTICS,
    means_of_people,
    p_of_features,
    p_of_statistics,
)

PEOPLE, IMAGES = 200, 4  # at most, of a camera and of a person there: what a comparison costs is bounded
FEATURES = "features"
_NAMES = tuple(STATISTICS)


class View(NamedTuple):
    """A camera in a modality; the same label in the other modality is another camera."""

    modality: str
    camera: str

    def __str__(self) -> str:
        return f"{self.modality} camera {self.camera or '(no name)'}"


@dataclass(frozen=True)
class Shift:
    """A statistic of one camera: its means over people before and now, and p for all cameras together.

    size: the difference in standard deviations of people, signed. Features have p alone.
    """

    statistic: str
    p: float
    before: float | None = None
    now: float | None = None
    size: float | None = None

    @property
    def alarm(self) -> bool:
        return self.p <= ALPHA

    def __str__(self) -> str:
        if self.size is None:
            return f"{self.statistic} (p {self.p:.3f})"
        return f"{self.statistic} {self.before:.4g} -> {self.now:.4g} ({self.size:+.1f} SD, p {self.p:.3f})"


@dataclass(frozen=True)
class CameraDrift:
    """The comparison of one camera.

    images: all that the drop has; people: of the sample that is compared; unnamed: images of it without a
    person, each counted as a person. shifts: every statistic that was tested. moved: the images of the drop
    that differ most in the first of the alarms (of a new camera: any); typical: images of the reference in
    the middle of it.
    """

    view: View
    images: int
    people: int
    people_before: int
    unnamed: int = 0
    shifts: tuple[Shift, ...] = ()
    moved: tuple[Any, ...] = ()
    typical: tuple[Any, ...] = ()

    @property
    def alarms(self) -> list[Shift]:
        """The statistics that changed, the largest change first."""
        return sorted((one for one in self.shifts if one.alarm), key=lambda one: -abs(one.size or 0))

    @property
    def is_new(self) -> bool:
        return not self.people_before

    @property
    def alarm(self) -> bool:
        return self.is_new or bool(self.alarms)

    @property
    def verdict(self) -> str:
        """One line."""
        if self.is_new:
            return f"new camera; people: {self.people}, images: {self.images}"
        if not self.shifts:
            return (
                f"not tested; people now: {self.people}, before: {self.people_before}, needed: {MIN_PEOPLE}"
            )
        changed = ", ".join(map(str, self.alarms)) or "no change found"
        return changed + (
            f"; images without a person, counted as people: {self.unnamed}" if self.unnamed else ""
        )


@dataclass(frozen=True)
class Measured:
    """Images of one camera (of any type), with the name or number of their people [n] and statistics [n, S].

    unseen [n]: which of them are of people whom the model was not trained on, and features [n, D]; those of
    the others are not used. unnamed: how many images have no person, each counted as one.
    """

    images: Sequence[Any]
    people: np.ndarray
    unseen: np.ndarray
    statistics: np.ndarray
    features: np.ndarray
    unnamed: int = 0

    def of_people(self) -> np.ndarray:
        return means_of_people(self.people, self.statistics)

    def features_of_strangers(self) -> np.ndarray:
        return means_of_people(self.people[self.unseen], self.features[self.unseen])


def sampled(people: np.ndarray) -> np.ndarray:
    """Positions of at most IMAGES images of each of at most PEOPLE people, drawn at random, ascending."""
    draws = np.random.default_rng(0)
    names, person = np.unique(people, return_inverse=True)
    chosen = np.isin(person, draws.permutation(len(names))[:PEOPLE])
    order = draws.permutation(np.flatnonzero(chosen))
    order = order[np.argsort(person[order], kind="stable")]
    _, first, person_of = np.unique(person[order], return_index=True, return_inverse=True)
    return np.sort(order[np.arange(len(order)) - first[person_of] < IMAGES])


def compare(pairs: Mapping[View, tuple[Measured | None, Measured, int]]) -> Iterator[CameraDrift]:
    """Of each camera: its images before (None: it is new) and now, and how many images it has now in all."""
    tested = sum(before is not None for before, _, _ in pairs.values())
    for view, (before, now, images) in pairs.items():
        people = len(np.unique(now.people))
        known = 0 if before is None else len(np.unique(before.people))
        found = CameraDrift(view, images, people, known, now.unnamed)
        if found.is_new:
            found = replace(found, moved=_of_other_people(now, np.arange(len(now.images))))
        if before is not None and min(people, known) >= MIN_PEOPLE:
            found = replace(found, shifts=tuple(_shifts(before, now, tested)))
        if before is not None and found.alarms:
            moved, typical = _shown(before, now, found.alarms[0].statistic)
            found = replace(found, moved=moved, typical=typical)
        yield found


def _shifts(before: Measured, now: Measured, cameras: int) -> Iterator[Shift]:
    old, new = before.of_people(), now.of_people()
    # At least a hundredth of the mean: what never varied, such as the height, has no deviation.
    scale = np.maximum(np.maximum(old.std(0), 0.01 * np.abs(old.mean(0))), 1e-5)
    ps = p_of_statistics(old, new, cameras)
    for n, p in enumerate(ps):
        means = float(old[:, n].mean()), float(new[:, n].mean())
        yield Shift(_NAMES[n], float(p), *means, (means[1] - means[0]) / float(scale[n]))
    strangers = before.features_of_strangers(), now.features_of_strangers()
    if min(map(len, strangers)) >= MIN_PEOPLE:
        yield Shift(FEATURES, p_of_features(*strangers, cameras))


SHOWN = 6  # pictures of a camera before, and now


def _shown(before: Measured, now: Measured, statistic: str) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The images that moved most in a statistic, and typical ones before, each of another person."""
    old, new = _values(before, now, statistic)
    middle = np.median(old)
    direction = np.sign(new.mean() - middle)
    moved = _of_other_people(now, np.argsort(-direction * (new - middle), kind="stable"))
    return moved, _of_other_people(before, np.argsort(np.abs(old - middle), kind="stable"))


def _values(before: Measured, now: Measured, statistic: str) -> tuple[np.ndarray, np.ndarray]:
    """A statistic of each image; of features, the part along the difference of the means."""
    if statistic != FEATURES:
        n = _NAMES.index(statistic)
        return before.statistics[:, n], now.statistics[:, n]
    way = now.features_of_strangers().mean(0) - before.features_of_strangers().mean(0)
    return before.features @ way, now.features @ way


def _of_other_people(measured: Measured, order: np.ndarray) -> tuple[Any, ...]:
    """The first images in this order, one of each person."""
    _, first = np.unique(measured.people[order], return_index=True)
    return tuple(measured.images[order[n]] for n in np.sort(first)[:SHOWN])
