"""Which labels the features of the images contradict: images, people who are one, people who are two.

`judge_labels` gives three kinds of scores, which are high where a label is wrong:

* of an image: how much more similar it is to another person than to the other images of its label;
* of two labels: how alike they are, compared with the images of one label;
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
    """Features float32 [n, D] of unit length of all images, the people it judges (numbers, ascending), and
    bool [P], whose labels the features were made with: whom it must not judge.
    """

    kind: str  # MODEL or CLIP
    features: np.ndarray
    people: np.ndarray
    learned: np.ndarray


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


def judge_labels(judges: Sequence[Judge], labels: np.ndarray, views: np.ndarray, size: int) -> Judgement:
    """Judge the labels of the first `size` images against all images.

    labels: int [n], the person 0..P-1 of each image, of whom none is missing; views: int [n], a number for
    camera and modality.
    """
    judged, people = np.unique(labels[:size]), int(labels.max()) + 1
    own, best = np.full(size, np.nan), np.full(size, np.nan)
    other, part = np.full(size, -1), np.full(len(labels), -1)
    pairs, splits = np.full((len(judged), people), np.nan), np.full(len(judged), np.nan)
    kind = np.full(people, "", dtype=object)
    for judge in judges:
        at, of_judge = np.searchsorted(judged, judge.people), np.isin(labels, judge.people)
        queries = np.flatnonzero(of_judge[:size])
        own[queries], best[queries], other[queries] = compare(judge.features, labels, queries)
        pairs[at], splits[at], halves = judge_people(judge, labels, views)
        part[of_judge] = halves[of_judge]
        kind[judge.people] = judge.kind
    score = best - own
    for name in {judge.kind for judge in judges}:
        images, rows = kind[labels[:size]] == name, kind[judged] == name
        score[images] = standardised(score[images])
        pairs[rows], splits[rows] = standardised(pairs[rows]), standardised(splits[rows])
    between = pairs[:, judged]
    pairs[:, judged] = (between + between.T) / 2  # NaN if one of the two
    return Judgement(score, own, best, other, judged, pairs, splits, part, kind)


def standardised(scores: np.ndarray) -> np.ndarray:
    """Scores as distances from their median in robust standard deviations (1.4826 MAD); NaN stays NaN."""
    known = scores[np.isfinite(scores)]
    if not len(known):
        return scores
    middle = np.median(known)
    spread = 1.4826 * np.median(np.abs(known - middle))
    return (scores - middle) / (spread or known.std() or 1.0)


# Images.


def compare(
    features: np.ndarray, labels: np.ndarray, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(own [q], best [q], other [q]) of the images `queries` (rows): how similar they are to people.

    The similarity to a person is the mean cosine of the NEAREST images. own: to the other images of its
    label, NaN where there are none; best: to the most similar other person, whose number is other.
    """
    own, best = np.full(len(queries), np.nan), np.full(len(queries), -np.inf)
    other, asked = np.full(len(queries), -1), features[queries]
    for number, rows in _images_of_people(labels):
        scores = asked @ features[rows].T
        scores[queries[:, None] == rows] = -np.inf  # no image is compared with itself
        near, mine = _nearest_mean(scores), labels[queries] == number
        own[mine] = near[mine]
        better = ~mine & (near > best)
        best[better], other[better] = near[better], number
    return own, best, other


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


# People: two labels that are one, one that is two.
#
# Images of one person differ between cameras, and more between modalities. So each cosine is taken relative
# to the mean over two images of one label by the same views: the relative cosine of two images of one person
# is 0 on average, whichever cameras recorded them.


def judge_people(
    judge: Judge, labels: np.ndarray, views: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(pairs [j, people], splits [j], half [n]) of the j people that a judge judges; NaN: no score.

    pairs: the mean relative cosine between the images of two labels, above the mean within the two. Where the
    other person is one that the judge has learned, the judged one stands for both. splits: the mean relative
    cosine between the halves of a label, negated; half: 0 or 1 for each image of a judged person, else -1.
    """
    features, people = judge.features, dict(_images_of_people(labels))
    unlearned = [n for n, rows in people.items() if len(rows) > 1 and not judge.learned[n]]
    cosines = {n: features[people[n]] @ features[people[n]].T for n in unlearned}
    means = _means_of_views(cosines, people, views)
    within, splits = np.full(len(people), np.nan), np.full(len(people), np.nan)
    half = np.full(len(labels), -1)
    for n, values in cosines.items():
        relative = values - means[np.ix_(views[people[n]], views[people[n]])]
        np.fill_diagonal(relative, 0)
        within[n] = relative.sum() / (len(relative) * (len(relative) - 1))
        splits[n], half[people[n]] = _split(relative)
    own = within[judge.people][:, None]
    pairs = _between(features, labels, views, means, judge.people)
    pairs -= (own + np.where(np.isnan(within), own, within)) / 2
    pairs[np.arange(len(judge.people)), judge.people] = np.nan
    return pairs, splits[judge.people], half


def _means_of_views(
    cosines: dict[int, np.ndarray], people: dict[int, np.ndarray], views: np.ndarray
) -> np.ndarray:
    """[views, views]: the mean cosine of two images of one label, by their views."""
    sums, counts = (np.zeros((views.max() + 1, views.max() + 1)) for _ in range(2))
    for n, values in cosines.items():
        first, second = np.nonzero(~np.eye(len(values), dtype=bool))
        at = views[people[n][first]], views[people[n][second]]
        np.add.at(sums, at, values[first, second])
        np.add.at(counts, at, 1)
    overall = sums.sum() / max(1, counts.sum())  # for views that no label has both of
    return np.where(counts, sums / np.maximum(counts, 1), overall)


def _between(
    features: np.ndarray, labels: np.ndarray, views: np.ndarray, means: np.ndarray, judged: np.ndarray
) -> np.ndarray:
    """[judged, people]: the mean relative cosine between the images of two people.

    The mean of products of two sets is the product of their means.
    """
    counts = np.bincount(labels)[:, None]
    mean_feature, of_view = np.zeros((len(counts), features.shape[1])), np.zeros((len(counts), len(means)))
    np.add.at(mean_feature, labels, features)
    np.add.at(of_view, (labels, views), 1)
    mean_feature, of_view = mean_feature / counts, of_view / counts
    return mean_feature[judged] @ mean_feature.T - of_view[judged] @ means @ of_view.T


def _split(relative: np.ndarray) -> tuple[float, np.ndarray]:
    """(score, half [k]) of the relative cosines [k, k] of a label, diagonal 0.

    The halves are the signs of the leading eigenvector, the spectral relaxation of 2-means.
    """
    side = np.linalg.eigh(relative)[1][:, -1] > 0
    few = min(side.sum(), (~side).sum()) < FEWEST
    # The first image is in half 0, as the sign is arbitrary.
    return np.nan if few else -relative[np.ix_(side, ~side)].mean(), side != side[0]


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
            learned = np.arange(labels.max() + 1) % FOLDS != fold
            judges.append(Judge(CLIP, whitened(features, labels, modality, learned[labels]), own, learned))
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
