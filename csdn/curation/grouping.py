"""Images without a person become groups of images of one person, at thresholds that test people have set.

Groups grow in three levels and get names in a fourth; the score is the cosine of two mean features:

    camera      images of one camera, by average linkage
    modality    groups of one modality, of all its cameras, by average linkage
    cross       groups of the two modalities, where each is the other's nearest
    known       a group and the nearest known person, by their images of one modality each

`calibrate` sets a threshold for each level and modality, and for each pair of modalities: the lowest at which
the wanted share is right on the test people, whose names are known. At the first three levels it is the share
of the pairs of images that the level adds; at the last that of the images that get a name, if half of the
people are new. In a drop with more images, or with more known people, than the test has, a stranger is found
more often. So a smaller share may be wrong on the test people there, by the model of independent people
(csdn.evaluation.open_set.fpir_at_size). A threshold needs 1 / (that share) test people who have pairs or
names: with fewer, one wrong pair more or less would decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from csdn.data.catalog import MODALITIES
from csdn.evaluation.open_set import fpir_at_size

LINKED = 5000  # groups that are linked at a time: their distances take 300 MB
COMPARED = 1024  # rows of a matrix of scores at a time
GRID = np.arange(99, 29, -1) / 100  # thresholds that are tried
CODES = range(len(MODALITIES))  # 0 visible, 1 infrared
Relation = tuple[str, ...]  # ("camera", "visible"), ("cross",), ("known", of the group, of the known person)


Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # features [b, D], people [b], modality codes [b]


class Images(NamedTuple):
    """Images in the order in which LINKED cuts them: features float32 [n, D] of unit length; codes [n]."""

    features: np.ndarray
    modality: np.ndarray  # 0 visible, 1 infrared
    camera: np.ndarray

    def of(self, rows: np.ndarray) -> Images:
        return Images(*(column[rows] for column in self))


class Known(NamedTuple):
    """Mean features float32 [k, D] of known people, of one modality each; people [k] by number, from 0."""

    features: np.ndarray
    modality: np.ndarray
    people: np.ndarray


@dataclass(frozen=True)
class Cut:
    """A threshold as test people set it; None: they support none.

    wanted: the share that must be right on them; people: those with a pair or a name at the threshold.
    """

    threshold: float | None
    wanted: float
    right: float = 0.0
    people: int = 0


class Groups(NamedTuple):
    """Of each image [n]: its group, the smallest row of its images; the known person, -1: nobody; and how far
    the group's score is above the threshold of its name (0 without a name).
    """

    group: np.ndarray
    person: np.ndarray
    margin: np.ndarray


# The levels. Each gives a function from a threshold to the groups [n], for `calibrate` to try them all.


def unit_means(features: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Unit means [m, D] of features [n, D]; members [n] are the numbers 0..m-1, each of them there."""
    sums = np.zeros((members.max(initial=-1) + 1, features.shape[1]), np.float32)
    np.add.at(sums, members, features)
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def _means(images: Images, group: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The groups among these rows, and their mean features over the rows."""
    own, members = np.unique(group[rows], return_inverse=True)
    return own, unit_means(images.features[rows], members)


def linked(images: Images, group: np.ndarray, blocks: list[np.ndarray]) -> Callable[[float], np.ndarray]:
    """Average linkage of the groups within each block of rows, at most LINKED groups at a time."""
    trees = []
    for rows in blocks:
        own, means = _means(images, group, rows)
        for start in range(0, len(own), LINKED):
            part = means[start : start + LINKED]
            if len(part) > 1:
                distances = squareform(np.clip(1 - part @ part.T, 0, 2), checks=False)
                trees.append((own[start : start + LINKED], linkage(distances, "average")))

    def at(threshold: float) -> np.ndarray:
        joined = np.arange(len(group))
        for own, tree in trees:
            cluster = fcluster(tree, 1 - threshold, "distance")
            first = np.full(cluster.max() + 1, len(group))
            np.minimum.at(first, cluster, own)
            joined[own] = first[cluster]
        return joined[group]

    return at


def matched(images: Images, group: np.ndarray) -> Callable[[float], np.ndarray]:
    """A visible group and an infrared one are one, if each is the other's nearest."""
    (visible, ours), (infrared, theirs) = (
        _means(images, group, np.flatnonzero(images.modality == code)) for code in CODES
    )
    if not len(visible) or not len(infrared):
        return lambda threshold: group
    place, scores = nearest(ours, theirs)
    mutual = nearest(theirs, ours)[0][place] == np.arange(len(visible))
    pairs = np.sort(np.stack([visible, infrared[place]]), axis=0)

    def at(threshold: float) -> np.ndarray:
        joined = np.arange(len(group))
        first, second = pairs[:, mutual & (scores >= threshold)]
        joined[second] = first
        return joined[group]

    return at


def nearest(rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of `others` [m, D] to each of `rows` [n, D]: places and scores [n]."""
    places, scores = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    for start in range(0, len(rows), COMPARED):
        block = rows[start : start + COMPARED] @ others.T
        places[start : start + COMPARED] = block.argmax(axis=1)
        scores[start : start + COMPARED] = block.max(axis=1)
    return places, scores


def levels(images: Images) -> list[tuple[Relation, Callable[[np.ndarray], Callable[[float], np.ndarray]]]]:
    """The first three levels, in order: groups [n] -> threshold -> groups [n]."""
    found = []
    for code, modality in enumerate(MODALITIES):
        rows = np.flatnonzero(images.modality == code)
        cameras = [rows[images.camera[rows] == one] for one in np.unique(images.camera[rows])]
        for name, blocks in (("camera", cameras), ("modality", [rows])):
            found.append(((name, modality), lambda group, blocks=blocks: linked(images, group, blocks)))
    return [*found, (("cross",), lambda group: matched(images, group))]


# Thresholds by test people.


def calibrate(
    images: Images, people: np.ndarray, sizes: Mapping[str, int], known_people: int, precision: float
) -> dict[Relation, Cut]:
    """The thresholds at which the share `precision` is right.

    images, people [n]: of the test; sizes: images of the drop by modality, and "all"; known_people: their
    number.
    """
    _, people = np.unique(people, return_inverse=True)
    tested = {str(name): np.count_nonzero(images.modality == code) for code, name in enumerate(MODALITIES)}
    tested["all"] = len(people)
    group, cuts = np.arange(len(people)), {}
    for relation, level in levels(images):
        at, size = level(group), relation[-1] if len(relation) > 1 else "all"
        before = pair_counts(group, people)
        tried = [(threshold, pair_counts(at(threshold), people) - before) for threshold in GRID]
        cuts[relation] = _lowest(tried, precision, sizes.get(size, 0), tested[size])
        group = _applied(at, cuts[relation], group)
    for relation, tried in _names_tried(images, group, people).items():
        cuts[relation] = _lowest(tried, precision, known_people, people.max() + 1)
    return cuts


def _applied(at: Callable[[float], np.ndarray], cut: Cut, group: np.ndarray) -> np.ndarray:
    return group if cut.threshold is None else at(cut.threshold)


def _lowest(tried: list[tuple[float, np.ndarray]], precision: float, size: int, tested: int) -> Cut:
    """The lowest threshold that is precise enough; tried: thresholds, and counts [people, (right, wrong)]."""
    wrong = fpir_at_size(1 - precision, max(size, tested), max(1, tested))
    best = Cut(None, 1 - wrong)
    for threshold, counts in tried:
        right, total = counts[:, 0].sum(), counts.sum()
        people = np.count_nonzero(counts.sum(axis=1))
        if total and people * wrong >= 1 and total - right <= wrong * total:
            best = Cut(float(threshold), 1 - wrong, float(right / total), people)
    return best


def pair_counts(group: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Pairs of images in one group, of each person [p, 2]: right ones, and half of the wrong ones.

    people [n]: numbers from 0.

    >>> pair_counts(np.array([0, 0, 0, 3]), np.array([0, 0, 1, 1])).tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    _, place, sizes = np.unique(group, return_inverse=True, return_counts=True)
    _, own, counts = np.unique(group * (people.max() + 1) + people, return_inverse=True, return_counts=True)
    pairs = np.stack([(counts[own] - 1) / 2, (sizes[place] - counts[own]) / 2], axis=1)
    return np.stack([np.bincount(people, column) for column in pairs.T], axis=1)


def _names_tried(
    images: Images, group: np.ndarray, people: np.ndarray
) -> dict[Relation, list[tuple[float, np.ndarray]]]:
    """Every second test image of a person and modality is known, the others are to be named.

    Each of these counts twice: among all people, and as the image of a new person among all others.
    """
    first = _turn(images.modality, people) % 2 == 0
    of_known = images.features[first], people[first], images.modality[first]
    known = known_means([of_known], people.max() + 1, images.features.shape[1])
    rest = np.flatnonzero(~first)
    found = {}
    for relation, own, means, theirs in _parts(images.of(rest), group[rest], known):
        of, mine = known.people[theirs], people[rest]
        member = np.searchsorted(own, group[rest])
        member = np.where(np.isin(group[rest], own), member, -1)
        rows = np.flatnonzero((member >= 0) & (images.modality[rest] == _code(relation[1])))
        scores = means[member[rows]] @ known.features[theirs].T
        same = of == mine[rows][:, None]
        strangers = np.where(same, -1, scores)
        correct = scores.argmax(axis=1) == np.where(same.any(axis=1), same.argmax(axis=1), -1)
        best, other = scores.max(axis=1), strangers.max(axis=1)
        tried = []
        for threshold in GRID:
            right = correct & (best >= threshold)
            wrong = (~correct & (best >= threshold)) * 1.0 + (other >= threshold)
            columns = [np.bincount(mine[rows], one, people.max() + 1) for one in (right, wrong)]
            tried.append((threshold, np.stack(columns, axis=1)))
        found[relation] = tried
    return found


def _turn(modality: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Each image's number, from 0, among those of its person and modality."""
    key = people * len(CODES) + modality
    order = np.argsort(key, kind="stable")
    _, starts, counts = np.unique(key[order], return_index=True, return_counts=True)
    turn = np.empty(len(key), np.int64)
    turn[order] = np.arange(len(key)) - np.repeat(starts, counts)
    return turn


def _code(modality: str) -> int:
    return MODALITIES.index(modality)


def known_means(batches: Iterable[Batch], people: int, dimension: int) -> Known:
    """Mean features of unit length by person and modality; people are numbers below `people`."""
    sums = np.zeros((people, len(MODALITIES), dimension), np.float32)
    for features, of, modality in batches:
        np.add.at(sums, (of, modality), features)
    norms = np.linalg.norm(sums, axis=2)
    of, modality = np.nonzero(norms)
    return Known(sums[of, modality] / norms[of, modality][:, None], modality, of)


def _parts(
    images: Images, group: np.ndarray, known: Known
) -> Iterator[tuple[Relation, np.ndarray, np.ndarray, np.ndarray]]:
    """For each pair of modalities: relation, groups with their means, and the rows of known people."""
    for code, modality in enumerate(MODALITIES):
        own, means = _means(images, group, np.flatnonzero(images.modality == code))
        for other, name in enumerate(MODALITIES):
            theirs = np.flatnonzero(known.modality == other)
            if len(own) and len(theirs):
                yield ("known", modality, name), own, means, theirs


# The groups of a drop.


def grouped(images: Images, known: Known, cuts: Mapping[Relation, Cut]) -> Groups:
    """The groups of a drop's images, at the thresholds that `calibrate` found; groups of one name are one."""
    group = np.arange(len(images.features))
    for relation, level in levels(images):
        if cuts[relation].threshold is not None:
            group = level(group)(cuts[relation].threshold)
    person, margin = np.full(len(group), -1), np.full(len(group), -np.inf)
    for relation, own, means, theirs in _parts(images, group, known):
        cut = cuts.get(relation)
        if cut is None or cut.threshold is None:
            continue
        places, scores = nearest(means, known.features[theirs])
        above = scores - cut.threshold
        better = (above >= 0) & (above > margin[own])
        person[own[better]] = known.people[theirs[places[better]]]
        margin[own[better]] = above[better]
    person, margin = person[group], np.where(person >= 0, margin, 0)[group]
    first = np.arange(len(group))
    for one in np.unique(person[person >= 0]):
        rows = np.flatnonzero(person == one)
        first[rows] = rows[0]
    return Groups(np.where(person >= 0, first, group), person, margin)
