"""Images without a person become groups of images of one person, at thresholds that test people have set.

Groups grow in three levels and get names in a fourth. The score of two groups is the mean cosine over the
pairs of their images: the product of their mean features. So it does not grow with the groups, as the cosine
of the means does, and a threshold holds for large and for small ones:

    camera      images of one camera, by average linkage
    modality    groups of one modality, of all its cameras, by average linkage
    cross       groups of the two modalities, where each is the other's nearest
    known       a group and the nearest known person, by their images of one modality each, the same first

`calibrate` sets a threshold for each level and modality, and for each pair of modalities: the lowest at which
the wanted share is right on the test people, whose names are known. At the first three levels it is the share
of the pairs of images that the level adds; at the last that of the images to which a pair of modalities adds
a name, if half of the people are new.

* The lowest threshold lies just above the next mistake. A mistake concerns two people, so two more count as
  wrong than are: a wrong share of 5 % takes more than 40 test people who have pairs or names.
* In a larger drop, or among more known people, a stranger is found more often. So the test people are taken
  in parts of the drop's size. Where all of them are fewer than the drop's, a smaller share may be wrong on
  them, by the model of independent people (csdn.evaluation.open_set.fpir_at_size).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from csdn.data.catalog import MODALITIES
from csdn.evaluation.open_set import fpir_at_size

LINKED = 5000  # groups that are linked at a time: their distances take 300 MB
PART = 20  # test people that are taken together, at least
COMPARED = 1024  # rows of a matrix of scores at a time
GRID = 1 - np.geomspace(1e-4, 0.95, 200)  # thresholds that are tried: falling, dense at the high ones
CODES = range(len(MODALITIES))  # 0 visible, 1 infrared
NOBODY = -1  # in arrays of people
Relation = tuple[str, ...]  # ("camera", "visible"), ("cross",), ("known", of the group, of the known person)
LEVELS: tuple[Relation, ...] = (
    ("camera", "visible"),
    ("modality", "visible"),
    ("camera", "infrared"),
    ("modality", "infrared"),
    ("cross",),
)
# The pairs of modalities by which a group gets a name, in this order.
NAMES = tuple(
    ("known", one, other)
    for one, other in (
        ("visible", "visible"),
        ("infrared", "infrared"),
        ("visible", "infrared"),
        ("infrared", "visible"),
    )
)


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
    """Of each image [n]: its group, the smallest row of its images, and the known person or NOBODY."""

    group: np.ndarray
    person: np.ndarray


# The levels. Each gives a function from a threshold to the groups [n], for `calibrate` to try them all.


def mean_features(features: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Means [m, D] of features [n, D]; members [n] are the numbers 0..m-1, each of them there."""
    sums = np.zeros((members.max(initial=-1) + 1, features.shape[1]), np.float32)
    np.add.at(sums, members, features)
    return sums / np.bincount(members)[:, None]


def _means(images: Images, group: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The groups among these rows, and their mean features over the rows."""
    own, members = np.unique(group[rows], return_inverse=True)
    return own, mean_features(images.features[rows], members)


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


def nearest(
    rows: np.ndarray, others: np.ndarray, hidden: Callable[[slice], np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of `others` [m, D] to each of `rows` [n, D]: places and scores [n].

    hidden: of a slice of the rows, which of the others do not count, bool [rows, m].
    """
    places, scores = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    for start in range(0, len(rows), COMPARED):
        part = slice(start, start + COMPARED)
        block = rows[part] @ others.T
        if hidden:
            block[hidden(part)] = -1
        places[part], scores[part] = block.argmax(axis=1), block.max(axis=1)
    return places, scores


def level(images: Images, relation: Relation, group: np.ndarray) -> Callable[[float], np.ndarray]:
    """One of LEVELS, of groups [n]."""
    if relation == ("cross",):
        return matched(images, group)
    rows = np.flatnonzero(images.modality == MODALITIES.index(relation[1]))
    if relation[0] == "modality":
        return linked(images, group, [rows])
    return linked(images, group, [rows[images.camera[rows] == one] for one in np.unique(images.camera[rows])])


# Thresholds by test people.


def calibrate(
    images: Images, people: np.ndarray, sizes: Mapping[str, int], known_people: int, precision: float
) -> dict[Relation, Cut]:
    """The thresholds at which the share `precision` is right.

    images, people [n]: of the test; sizes: images of the drop by modality, and "all"; known_people: their
    number. Test people are taken in parts of the drop's size, and of the number of known people.
    """
    _, people = np.unique(people, return_inverse=True)
    parts = _parts(people, len(people) / max(1, sizes["all"]))
    of_parts = [images.of(rows) for rows in parts]
    groups, cuts = [np.arange(len(rows)) for rows in parts], dict[Relation, Cut]()
    for relation in LEVELS:
        steps = [level(part, relation, group) for part, group in zip(of_parts, groups, strict=True)]
        before = _pairs_of_all(groups, parts, people)
        tried = [
            (threshold, _pairs_of_all([at(threshold) for at in steps], parts, people) - before)
            for threshold in GRID
        ]
        of = images.modality == MODALITIES.index(relation[1]) if len(relation) > 1 else images.modality >= 0
        size = sizes.get(relation[1], 0) if len(relation) > 1 else sizes["all"]
        cuts[relation] = _lowest(tried, precision, size, np.count_nonzero(of) / len(parts))
        if (threshold := cuts[relation].threshold) is not None:
            groups = [at(threshold) for at in steps]
    group = np.empty(len(people), np.int64)
    for rows, own in zip(parts, groups, strict=True):
        group[rows] = rows[own]
    return cuts | _calibrate_names(images, group, people, known_people, precision)


def _parts(people: np.ndarray, count: float) -> list[np.ndarray]:
    """Rows of the images of `count` parts of the people, at least one part and PART people in each."""
    count = max(1, int(min(count, (people.max() + 1) / PART)))
    return [np.flatnonzero(people % count == part) for part in range(count)]


def _pairs_of_all(groups: list[np.ndarray], parts: list[np.ndarray], people: np.ndarray) -> np.ndarray:
    counts = np.zeros((people.max() + 1, 2))
    for group, rows in zip(groups, parts, strict=True):
        found = pair_counts(group, people[rows])
        counts[: len(found)] += found
    return counts


def _lowest(tried: list[tuple[float, np.ndarray]], precision: float, size: int, tested: float) -> Cut:
    """The lowest threshold that is precise enough; tried: thresholds, and counts [people, (right, wrong)]."""
    wrong = fpir_at_size(1 - precision, max(size, tested), max(1, tested))
    best = Cut(None, 1 - wrong)
    for threshold, counts in tried:
        right, total = counts[:, 0].sum(), counts.sum()
        people = np.count_nonzero(counts.sum(axis=1))
        if total and (total - right) / total + 2 / people <= wrong:
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


def _calibrate_names(
    images: Images, group: np.ndarray, people: np.ndarray, known_people: int, precision: float
) -> dict[Relation, Cut]:
    """The thresholds of names; group and people [n] of the test images."""
    count, cuts = people.max() + 1, dict[Relation, Cut]()
    parts = _parts(people, count / max(1, known_people))
    trials = [_NameTrial(images.of(rows), group[rows], people[rows]) for rows in parts]
    for relation in NAMES:
        for trial in trials:
            trial.compare(relation)
        tried = [(threshold, sum(trial.counts(threshold, count) for trial in trials)) for threshold in GRID]
        cuts[relation] = _lowest(tried, precision, known_people, count / len(parts))
        if (threshold := cuts[relation].threshold) is not None:
            for trial in trials:
                trial.keep(threshold)
    return cuts


class _NameTrial:
    """Every second test image of a person and modality is known, the others are to be named.

    Each group of these has two roles: among all people, and as a new person among the others than its own.
    """

    def __init__(self, images: Images, group: np.ndarray, people: np.ndarray) -> None:
        first = _turn(images.modality, people) % 2 == 0
        batch = images.features[first], people[first], images.modality[first]
        self.known = known_means([batch], people.max() + 1, images.features.shape[1])
        self.images, self.people = images.of(~first), people[~first]
        _, self.group = np.unique(group[~first], return_inverse=True)
        members = np.zeros((self.group.max(initial=-1) + 1, people.max() + 1), np.int64)
        np.add.at(members, (self.group, self.people), 1)
        self.owner = members.argmax(axis=1)
        self.names = [np.full(len(members), NOBODY) for _ in range(2)]  # of groups, in each role

    def compare(self, relation: Relation) -> None:
        """Find the nearest known people in both roles."""
        of = self.images, self.group, self.known, relation
        self.found = [_nearest_known(*of, hidden) for hidden in (None, self.owner)]

    def counts(self, threshold: float, people: int) -> np.ndarray:
        """Images that would get a right and a wrong name, by person [people, 2]."""
        new, stranger = (
            _added(*pair, threshold)[self.group] for pair in zip(self.names, self.found, strict=True)
        )
        right = new == self.people
        wrong = ((new != NOBODY) & ~right).astype(float) + (stranger != NOBODY)
        return np.stack([np.bincount(self.people, one, people) for one in (right, wrong)], axis=1)

    def keep(self, threshold: float) -> None:
        """Give the names: the next pair of modalities adds to them."""
        self.names = [
            np.maximum(of, _added(of, found, threshold))
            for of, found in zip(self.names, self.found, strict=True)
        ]


def _nearest_known(
    images: Images, group: np.ndarray, known: Known, relation: Relation, hidden: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups with images of a modality, their nearest known person by images of another, and the scores.

    hidden: of each group, by its number, a person who does not count.
    """
    code, other = (MODALITIES.index(name) for name in relation[1:])
    own, means = _means(images, group, np.flatnonzero(images.modality == code))
    theirs = np.flatnonzero(known.modality == other)
    if not len(theirs):
        return own[:0], own[:0], means[:0, 0]
    people = known.people[theirs]
    hide = None if hidden is None else lambda part: hidden[own[part]][:, None] == people
    places, scores = nearest(means, known.features[theirs], hide)
    return own, people[places], scores


def _added(
    names: np.ndarray, found: tuple[np.ndarray, np.ndarray, np.ndarray], threshold: float
) -> np.ndarray:
    """The names that groups without one get, by the group's number; NOBODY for all others."""
    own, people, scores = found
    new = np.full(len(names), NOBODY)
    chosen = (scores >= threshold) & (names[own] == NOBODY)
    new[own[chosen]] = people[chosen]
    return new


def _turn(modality: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Each image's number, from 0, among those of its person and modality."""
    key = people * len(CODES) + modality
    order = np.argsort(key, kind="stable")
    _, starts, counts = np.unique(key[order], return_index=True, return_counts=True)
    turn = np.empty(len(key), np.int64)
    turn[order] = np.arange(len(key)) - np.repeat(starts, counts)
    return turn


def known_means(batches: Iterable[Batch], people: int, dimension: int) -> Known:
    """Mean features by person and modality; people are numbers below `people`."""
    sums = np.zeros((people, len(MODALITIES), dimension), np.float32)
    counts = np.zeros((people, len(MODALITIES)), np.int64)
    for features, of, modality in batches:
        np.add.at(sums, (of, modality), features)
        np.add.at(counts, (of, modality), 1)
    of, modality = np.nonzero(counts)
    return Known(sums[of, modality] / counts[of, modality][:, None], modality, of)


# The groups of a drop.


def grouped(images: Images, known: Known, cuts: Mapping[Relation, Cut]) -> Groups:
    """The groups of a drop's images, at the thresholds that `calibrate` found; groups of one name are one."""
    group = np.arange(len(images.features))
    for relation in LEVELS:
        if (threshold := cuts[relation].threshold) is not None:
            group = level(images, relation, group)(threshold)
    names = np.full(len(group), NOBODY)
    for relation in NAMES:
        found = _nearest_known(images, group, known, relation)
        if (threshold := cuts[relation].threshold) is not None:
            np.maximum(names, _added(names, found, threshold), out=names)
    person = names[group]
    for one in np.unique(person[person != NOBODY]):
        rows = np.flatnonzero(person == one)
        group[rows] = rows[0]
    return Groups(group, person)
