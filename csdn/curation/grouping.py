"""Images without a person become groups of images of one person, at thresholds that test people have set.

Groups grow in levels and then get names. The score of two groups is the mean cosine over the pairs of their
images: the product of their mean features. So it does not grow with the groups, as the cosine of the means
does, and one threshold holds for large and small ones:

    camera      groups of one camera, by average linkage
    modality    groups of one modality, of all its cameras, by average linkage
    cross       groups of the two modalities, where each is the other's nearest
    known       a group and the nearest known person, by their images of one modality each, the same first

Each level and modality, and each pair of modalities, has the lowest threshold at which the wanted share is
right of what it adds: of the pairs of images, or of the images with a name. That share is estimated as a
false discovery rate (Storey and Tibshirani, 2003): what is wrong by the test people, over what the drop has.

* The test people, whose names are known, are grouped by the same levels. They give the rate of wrong pairs
  among all pairs that are compared, or of new people who get a name. A larger drop has more pairs, and in
  more known people a stranger is found more often (csdn.evaluation.open_set.fpir_at_size).
* The lowest threshold lies just above the next mistake, which concerns two people. So MISTAKES more people
  count as wrong than are.
* What the drop has at a threshold is counted, so nothing is assumed about the images of a person in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from csdn.data.catalog import MODALITIES
from csdn.evaluation.open_set import fpir_at_size

LINKED = 5000  # groups that are linked at a time: their distances take 300 MB
COMPARED = 1024  # rows of a matrix of scores at a time
MISTAKES = 2
GRID = 1 - np.geomspace(1e-4, 0.95, 150)  # thresholds that are tried: falling, dense at the high ones
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
NAMES: tuple[Relation, ...] = (
    ("known", "visible", "visible"),
    ("known", "infrared", "infrared"),
    ("known", "visible", "infrared"),
    ("known", "infrared", "visible"),
)
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # features [b, D], people [b], modality codes [b]
Nearest = tuple[np.ndarray, np.ndarray, np.ndarray]  # groups, their nearest known people, and the scores


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
    """A threshold, and what it adds to a drop: pairs or names, and the share of them that is right.

    None: no threshold adds anything of which the wanted share is right.
    """

    threshold: float | None = None
    added: int = 0
    right: float = 0.0


class Groups(NamedTuple):
    """Of each image [n]: its group, the smallest row of its images, and the known person or NOBODY."""

    group: np.ndarray
    person: np.ndarray
    cuts: dict[Relation, Cut]


def grouped(images: Images, known: Known, test: Images, people: np.ndarray, precision: float) -> Groups:
    """The groups of a drop's images; groups of one name are one.

    test, people [m]: the test people's images, and whom they show. precision: the wanted share, 0..1.
    """
    _, people = np.unique(people, return_inverse=True)
    group, of_test = np.arange(len(images.features)), np.arange(len(people))
    cuts = dict[Relation, Cut]()
    for relation in LEVELS:
        at, compared = level(images, relation, group)
        at_test, compared_of_test = level(test, relation, of_test)
        scale = compared / max(1, compared_of_test)
        if relation == (
            "cross",
        ):  # a group has one match at most: fewer images have not so much fewer matches
            scale = max(scale, scale**0.5)
        before, wrong_before = pair_counts(group), pair_counts(of_test, people)
        tried = (
            (
                threshold,
                int(pair_counts(at(threshold)).sum() - before.sum()),
                scale * _wrong_pairs(pair_counts(at_test(threshold), people) - wrong_before),
            )
            for threshold in GRID
        )
        cuts[relation] = _lowest(tried, precision)
        if (threshold := cuts[relation].threshold) is not None:
            group, of_test = at(threshold), at_test(threshold)
    names, of_names = _named(images, group, known, _NameTrial(test, of_test, people), precision)
    person = names[group]
    for one in np.unique(person[person != NOBODY]):
        rows = np.flatnonzero(person == one)
        group[rows] = rows[0]
    return Groups(group, person, cuts | of_names)


def _lowest(tried: Iterable[tuple[float, int, float]], precision: float) -> Cut:
    """The lowest threshold of (threshold, added, of these wrong, as estimated) that is precise enough."""
    best = Cut()
    for threshold, added, wrong in tried:
        if added and wrong <= (1 - precision) * added:
            best = Cut(float(threshold), added, 1 - wrong / added)
    return best


# The levels.

Level = tuple[Callable[[float], np.ndarray], int]  # threshold -> groups [n]; pairs of images compared


def level(images: Images, relation: Relation, group: np.ndarray) -> Level:
    """One of LEVELS, of groups [n]."""
    if relation == ("cross",):
        return matched(images, group)
    rows = np.flatnonzero(images.modality == MODALITIES.index(relation[1]))
    if relation[0] == "modality":
        return linked(images, group, [rows])
    return linked(images, group, [rows[images.camera[rows] == one] for one in np.unique(images.camera[rows])])


def mean_features(features: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Means [m, D] of features [n, D]; members [n] are the numbers 0..m-1, each of them there."""
    sums = np.zeros((members.max(initial=-1) + 1, features.shape[1]), np.float32)
    np.add.at(sums, members, features)
    return sums / np.bincount(members)[:, None]


def _means(images: Images, group: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The groups among these rows, and their mean features over the rows."""
    own, members = np.unique(group[rows], return_inverse=True)
    return own, mean_features(images.features[rows], members)


def linked(images: Images, group: np.ndarray, blocks: list[np.ndarray]) -> Level:
    """Average linkage of the groups within each block of rows, at most LINKED groups at a time."""
    trees, compared = [], 0
    for rows in blocks:
        own, means = _means(images, group, rows)
        for start in range(0, len(own), LINKED):
            part = means[start : start + LINKED]
            count = int(np.count_nonzero(np.isin(group[rows], own[start : start + LINKED])))
            compared += count * (count - 1) // 2
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

    return at, compared


def matched(images: Images, group: np.ndarray) -> Level:
    """A visible group and an infrared one are one, if each is the other's nearest."""
    (visible, ours), (infrared, theirs) = (
        _means(images, group, np.flatnonzero(images.modality == code)) for code in range(len(MODALITIES))
    )
    if not len(visible) or not len(infrared):
        return lambda threshold: group, 0
    place, scores = nearest(ours, theirs)
    mutual = nearest(theirs, ours)[0][place] == np.arange(len(visible))
    pairs = np.sort(np.stack([visible, infrared[place]]), axis=0)

    def at(threshold: float) -> np.ndarray:
        joined = np.arange(len(group))
        first, second = pairs[:, mutual & (scores >= threshold)]
        joined[second] = first
        return joined[group]

    return at, int(np.prod(np.bincount(images.modality)))


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


def pair_counts(group: np.ndarray, people: np.ndarray | None = None) -> np.ndarray:
    """Pairs of images in one group, of each person [p, 2]: right ones, and half of the wrong ones.

    people [n]: numbers from 0; None: all images are of one person.

    >>> pair_counts(np.array([0, 0, 0, 3]), np.array([0, 0, 1, 1])).tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    people = np.zeros(len(group), np.int64) if people is None else people
    _, place, sizes = np.unique(group, return_inverse=True, return_counts=True)
    keys = group * (people.max(initial=0) + 1) + people
    _, own, counts = np.unique(keys, return_inverse=True, return_counts=True)
    pairs = np.stack([(counts[own] - 1) / 2, (sizes[place] - counts[own]) / 2], axis=1)
    return np.stack([np.bincount(people, column) for column in pairs.T], axis=1)


def _wrong_pairs(counts: np.ndarray) -> float:
    """The wrong pairs of `pair_counts` [p, 2], with those of MISTAKES people more."""
    total, people = counts.sum(), np.count_nonzero(counts.sum(axis=1))
    return float(counts[:, 1].sum() + MISTAKES * max(1, total / max(1, people)))


# Names: the nearest known person.


def _named(
    images: Images, group: np.ndarray, known: Known, trial: _NameTrial, precision: float
) -> tuple[np.ndarray, dict[Relation, Cut]]:
    """The known person or NOBODY of each group, by its number [n]; and the thresholds.

    All images without a name are taken for new people's: a share `rate` of the new people's gets one, which
    may be no more than 1 - precision.
    """
    names, cuts = np.full(len(group), NOBODY), dict[Relation, Cut]()
    known_people = max(1, len(np.unique(known.people)))
    for relation in NAMES:
        found = nearest_known(images, group, known, relation)
        trial.compare(relation)
        unnamed = np.count_nonzero(np.isin(group, found[0]) & (names[group] == NOBODY))
        tried = []
        for threshold in GRID:
            added = int(np.count_nonzero(_added(names, found, threshold)[group] != NOBODY))
            rate = fpir_at_size(trial.wrong_rate(threshold), trial.known_people, known_people)
            if rate <= 1 - precision:
                tried.append((threshold, added, rate * (unnamed - added) / (1 - rate)))
        cuts[relation] = _lowest(tried, precision)
        if (threshold := cuts[relation].threshold) is not None:
            names = np.maximum(names, _added(names, found, threshold))
            trial.keep(threshold)
    return names, cuts


class _NameTrial:
    """Test images that get names: every second one of a person and modality is known, the others are new.

    A group of these is compared with all people but its own.
    """

    def __init__(self, images: Images, group: np.ndarray, people: np.ndarray) -> None:
        first = _turn(images.modality, people) % 2 == 0
        batch = images.features[first], people[first], images.modality[first]
        self.known = known_means([batch], people.max() + 1, images.features.shape[1])
        self.images, self.people, self.known_people = images.of(~first), people[~first], people.max()
        _, self.group = np.unique(group[~first], return_inverse=True)
        members = np.zeros((self.group.max(initial=-1) + 1, people.max() + 1), np.int64)
        np.add.at(members, (self.group, self.people), 1)
        self.owner, self.names = members.argmax(axis=1), np.full(len(members), NOBODY)

    def compare(self, relation: Relation) -> None:
        self.found = nearest_known(self.images, self.group, self.known, relation, self.owner)
        self.unnamed = np.isin(self.group, self.found[0]) & (self.names[self.group] == NOBODY)

    def wrong_rate(self, threshold: float) -> float:
        """The share of the images that get a name, with MISTAKES people more; below 1."""
        wrong = int(np.count_nonzero(_added(self.names, self.found, threshold)[self.group] != NOBODY))
        people = max(1, len(np.unique(self.people[self.unnamed])))
        return min(1 - 1e-9, wrong / max(1, int(np.count_nonzero(self.unnamed))) + MISTAKES / people)

    def keep(self, threshold: float) -> None:
        self.names = np.maximum(self.names, _added(self.names, self.found, threshold))


def _turn(modality: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Each image's number, from 0, among those of its person and modality."""
    key = people * len(MODALITIES) + modality
    order = np.argsort(key, kind="stable")
    _, starts, counts = np.unique(key[order], return_index=True, return_counts=True)
    turn = np.empty(len(key), np.int64)
    turn[order] = np.arange(len(key)) - np.repeat(starts, counts)
    return turn


def nearest_known(
    images: Images, group: np.ndarray, known: Known, relation: Relation, hidden: np.ndarray | None = None
) -> Nearest:
    """Groups with images of a modality, and the nearest known person by images of another.

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


def _added(names: np.ndarray, found: Nearest, threshold: float) -> np.ndarray:
    """The names that groups without one get, by the group's number; NOBODY for all others."""
    own, people, scores = found
    new = np.full(len(names), NOBODY)
    chosen = (scores >= threshold) & (names[own] == NOBODY)
    new[own[chosen]] = people[chosen]
    return new


def known_means(batches: Iterable[Batch], people: int, dimension: int) -> Known:
    """Mean features by person and modality; people are numbers below `people`."""
    sums = np.zeros((people, len(MODALITIES), dimension), np.float32)
    counts = np.zeros((people, len(MODALITIES)), np.int64)
    for features, of, modality in batches:
        np.add.at(sums, (of, modality), features)
        np.add.at(counts, (of, modality), 1)
    of, modality = np.nonzero(counts)
    return Known(sums[of, modality] / counts[of, modality][:, None], modality, of)
