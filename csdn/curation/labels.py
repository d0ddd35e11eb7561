"""Which labels the features of the images contradict: images, people who are one, people who are two.

`judge_labels` gives three kinds of scores, which are high where a label is wrong:

* of an image: how much more similar it is to another person than to the other images of its label;
* of two labels: how much more alike they are than the images of one label are;
* of a label: how little alike its two halves are.

Similarities are cosines. A judge is a set of features with the people whose labels it may judge; which ones,
csdn.curation.label_check decides. Everything here is arithmetic on arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

NEAREST = 3  # images of a person that an image is compared by: one alone may be an accident
FOLDS = 5
SHRINKAGE = 0.3  # of a covariance to a multiple of the identity, since few people give a poor estimate
FEWEST = 2  # images of each half of a label
MODEL, CLIP = "model", "CLIP"  # whose features a judge has


class Judge(NamedTuple):
    """Features float32 [n, D] of unit length of all images, and the numbers of the people it judges."""

    kind: str  # MODEL or CLIP
    features: np.ndarray
    people: np.ndarray


@dataclass(frozen=True)
class Judgement:
    """The scores, in robust standard deviations above the median of those of the same kind of judge.

    Of the q images that are judged: score [q], NaN where the image is the only one of its label; own and
    best [q], the cosines to the label's other images and to the most similar other person; other [q], the
    number of that person. Of the j people that are judged: pairs [j, people] and splits [j], NaN where there
    is no score; part [n]: the half of each image, 0 or 1, -1 for other people's. kind [people]: of the judge.
    """

    score: np.ndarray
    own: np.ndarray
    best: np.ndarray
    other: np.ndarray
    judged: np.ndarray
    pairs: np.ndarray
    splits: np.ndarray
    part: np.ndarray
    kind: np.ndarray


def judge_labels(
    judges: Sequence[Judge], labels: np.ndarray, views: np.ndarray, size: int, learned: np.ndarray
) -> Judgement:
    """Judge the labels of the first `size` images against all images.

    labels: int [n], the person 0..P-1 of each image; views: int [n], a number for camera and modality;
    learned: bool [P], who the judges of kind MODEL were trained on, whom they do not judge.
    """
    judged, people = np.unique(labels[:size]), int(labels.max()) + 1
    own, best = np.full(size, np.nan), np.full(size, np.nan)
    other, part = np.full(size, -1), np.full(len(labels), -1)
    pairs, splits = np.full((len(judged), people), np.nan), np.full(len(judged), np.nan)
    kind = np.full(people, "", dtype=object)
    for judge in judges:
        at, of_judge = np.searchsorted(judged, judge.people), np.isin(labels, judge.people)
        queries = np.flatnonzero(of_judge[:size])
        found = compare(judge.features, labels, queries, judge.people)
        own[queries], best[queries], other[queries] = found.own, found.best, found.other
        pairs[at] = _same_person(found, judge.people, learned & (judge.kind == MODEL))
        splits[at], halves = split_people(judge.features, labels, views, judge.people)
        part[of_judge] = halves[of_judge]
        kind[judge.people] = judge.kind
    score = best - own
    for name in {judge.kind for judge in judges}:
        images, rows = kind[labels[:size]] == name, kind[judged] == name
        score[images] = standardised(score[images])
        pairs[rows], splits[rows] = standardised(pairs[rows]), standardised(splits[rows])
    between = pairs[:, judged]
    pairs[:, judged] = (between + between.T) / 2
    return Judgement(score, own, best, other, judged, pairs, splits, part, kind)


def standardised(scores: np.ndarray) -> np.ndarray:
    """Scores as distances from their median in robust standard deviations (1.4826 MAD); NaN stays NaN."""
    known = scores[np.isfinite(scores)]
    if not len(known):
        return scores
    middle = np.median(known)
    spread = 1.4826 * np.median(np.abs(known - middle))
    return (scores - middle) / (spread or known.std() or 1.0)


# Images, and pairs of people.


class Similarity(NamedTuple):
    """The mean cosine of the NEAREST images of a person, to images [q] and on average to people [j].

    own [q]: to the other images of the image's label, NaN where there are none; best [q]: to the most similar
    other person, of number other [q]. to_people [j, people]: over the images of a judged person; within
    [people]: over a person's images to the others of the person, NaN where there are none.
    """

    own: np.ndarray
    best: np.ndarray
    other: np.ndarray
    to_people: np.ndarray
    within: np.ndarray


def compare(features: np.ndarray, labels: np.ndarray, queries: np.ndarray, judged: np.ndarray) -> Similarity:
    """The similarities of the images `queries` (rows) of the people `judged` (numbers, ascending).

    No image is compared with itself.
    """
    people = int(labels.max()) + 1
    own, best = np.full(len(queries), np.nan), np.full(len(queries), -np.inf)
    other, within = np.full(len(queries), -1), np.full(people, np.nan)
    to_people = np.full((len(judged), people), np.nan)
    person, asked = np.searchsorted(judged, labels[queries]), features[queries]
    counts = np.bincount(person, minlength=len(judged))
    for number, rows in _images_of_people(labels):
        among = features[rows]
        if len(rows) > 1:
            inside = among @ among.T
            np.fill_diagonal(inside, -np.inf)
            within[number] = _nearest_mean(inside).mean()
        scores = asked @ among.T
        scores[queries[:, None] == rows] = -np.inf
        near, mine = _nearest_mean(scores), labels[queries] == number
        own[mine] = near[mine]
        better = ~mine & (near > best)
        best[better], other[better] = near[better], number
        to_people[:, number] = np.bincount(person, near, len(judged)) / counts
    return Similarity(own, best, other, to_people, within)


def _images_of_people(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The number of each person, and the rows of the images, ascending."""
    order = np.argsort(labels, kind="stable")
    yield from enumerate(np.split(order, np.cumsum(np.bincount(labels))[:-1]))


def _nearest_mean(scores: np.ndarray) -> np.ndarray:
    """The mean of the NEAREST largest scores of each row [n, k]; -inf is no score; NaN: the row has none."""
    top = -np.sort(-scores, axis=1)[:, :NEAREST]
    counts = np.isfinite(top).sum(axis=1)
    sums = np.where(np.isfinite(top), top, 0).sum(axis=1)
    return np.where(counts, sums / np.maximum(counts, 1), np.nan)


def _same_person(found: Similarity, judged: np.ndarray, learned: np.ndarray) -> np.ndarray:
    """[judged, people]: how much more alike two people are than the images of each are; NaN for one and the
    same.

    A model has pulled the images of the people it learned together, so where the other person is `learned`,
    only the judged one says how alike images of one person are.
    """
    own = found.within[judged][:, None]
    other = np.where(learned | np.isnan(found.within), own, found.within)
    scores = found.to_people - (own + other) / 2
    scores[np.arange(len(judged)), judged] = np.nan
    return scores


# Labels that are two people.


def split_people(
    features: np.ndarray, labels: np.ndarray, views: np.ndarray, judged: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(score [judged], half [n]): how little alike the two halves of each label are, and the images' halves.

    Images of one person differ between cameras, so each cosine is taken relative to the mean over images of
    one label by the same pair of views. The halves are the signs of the leading eigenvector (the spectral
    relaxation of 2-means); the score is the mean between them, negated.
    """
    people = dict(_images_of_people(labels))
    cosines = {
        number: features[rows] @ features[rows].T for number in judged if len(rows := people[number]) > 1
    }
    means = _means_of_views(cosines, people, views)
    scores, half = np.full(len(judged), np.nan), np.full(len(labels), -1)
    for place, number in enumerate(judged):
        if number not in cosines:
            continue
        rows = people[number]
        relative = cosines[number] - means[np.ix_(views[rows], views[rows])]
        np.fill_diagonal(relative, 0)
        side = np.linalg.eigh(relative)[1][:, -1] > 0
        half[rows] = side != side[0]  # the first image is in half 0, as the sign is arbitrary
        if FEWEST <= side.sum() <= len(rows) - FEWEST:
            scores[place] = -relative[np.ix_(side, ~side)].mean()
    return scores, half


def _means_of_views(
    cosines: dict[int, np.ndarray], people: dict[int, np.ndarray], views: np.ndarray
) -> np.ndarray:
    """[views, views]: the mean cosine of two images of one label, by the views of both."""
    sums, counts = (np.zeros((views.max() + 1, views.max() + 1)) for _ in range(2))
    for number, values in cosines.items():
        first, second = np.nonzero(~np.eye(len(values), dtype=bool))
        at = views[people[number][first]], views[people[number][second]]
        np.add.at(sums, at, values[first, second])
        np.add.at(counts, at, 1)
    return sums / np.maximum(counts, 1)


# Judges of people that the model was trained on.


def cross_validated(
    features: np.ndarray, labels: np.ndarray, modality: np.ndarray, judged: np.ndarray
) -> list[Judge]:
    """Judges of the people `judged` by features of CLIP: each fold in a metric fitted on the other folds.

    modality: int [n]. The fold of a person is the number modulo FOLDS.
    """
    judges = []
    for fold in range(FOLDS):
        own = judged[judged % FOLDS == fold]
        if len(own):
            judges.append(Judge(CLIP, whitened(features, labels, modality, labels % FOLDS != fold), own))
    return judges


def whitened(
    features: np.ndarray, labels: np.ndarray, modality: np.ndarray, fitted_on: np.ndarray
) -> np.ndarray:
    """Features in which what differs between images of one person counts less; float32 of unit length.

    The mean of each modality is removed, and the covariance within people becomes the identity (WCCN, Hatch
    et al., Interspeech 2006). Both are estimated on the images `fitted_on` (bool [n]) alone.
    """
    centred = features.astype(np.float64)
    for code in np.unique(modality[fitted_on]):
        of = modality == code
        centred[of] -= centred[of & fitted_on].mean(axis=0)
    rows, person = centred[fitted_on], np.unique(labels[fitted_on], return_inverse=True)[1]
    means = np.zeros((person.max(initial=-1) + 1, rows.shape[1]))
    np.add.at(means, person, rows)
    rows = rows - (means / np.bincount(person)[:, None])[person]
    covariance = rows.T @ rows / max(1, len(rows))
    scale = np.trace(covariance) / len(covariance) or 1.0
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * scale * np.eye(len(covariance))
    found = centred @ np.linalg.cholesky(np.linalg.inv(covariance))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
