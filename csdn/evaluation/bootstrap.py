"""How sure a difference of two models is: a paired bootstrap over people. Pure, in float64.

Both models answer the same queries from the same galleries, so each query gives one difference. Images of one
person are no independent evidence: people are drawn with replacement, each with all their queries of all
trials. The galleries stay as they are: what varies is who asks, not who stands in the way.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# A resample is a row of counts [people]: so many numbers of them are held at a time.
_AT_A_TIME = 4_000_000


class PeopleSums(NamedTuple):
    """Per-query values added up: for each person and trial, as a mean over queries needs no more."""

    sums: np.ndarray  # float64 [people, trials, figures]
    counts: np.ndarray  # float64 [people, trials], how many queries; at least one in some trial of a person


class Intervals(NamedTuple):
    """Of each figure, float64 [figures]: its value on the people as they are, and the interval's ends."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def sums_of_people(values: np.ndarray, people: np.ndarray, trials: np.ndarray) -> PeopleSums:
    """Values [n, figures] of n queries, each asked by a person in a trial, added up.

    people: ids [n], of any kind; trials: 0, 1, ... [n]. Raises ValueError where these do not fit, and where
    a value is not finite.
    """
    if values.ndim != 2 or not len(values) == len(people) == len(trials):
        raise ValueError(f"values {values.shape}, {len(people)} people, {len(trials)} trials do not fit")
    if not np.isfinite(values).all():
        raise ValueError("the value of a query is not finite: leave out queries that have no right image")
    _, person = np.unique(people, return_inverse=True)
    shape = (int(person.max(initial=-1)) + 1, int(trials.max(initial=-1)) + 1)
    sums, counts = np.zeros((*shape, values.shape[1])), np.zeros(shape)
    np.add.at(sums, (person, trials), values)
    np.add.at(counts, (person, trials), 1)
    return PeopleSums(sums, counts)


def bootstrap_people(
    people: PeopleSums, samples: int, confidence: float, draws: np.random.Generator
) -> Intervals:
    """Percentile intervals of the figures under drawing people with replacement.

    A figure is the mean over the trials of the mean over a trial's queries, as in metrics/evaluation.json.
    samples: how often people are drawn; confidence: share of the drawn figures between the ends, 0..1. NaN
    where there is nobody.
    """
    count = len(people.counts)
    if not count:
        nothing = np.full(people.sums.shape[2], np.nan)
        return Intervals(nothing, nothing, nothing)
    drawn, step = [], max(1, _AT_A_TIME // count)
    for start in range(0, samples, step):
        size = min(step, samples - start)
        weights = draws.multinomial(count, np.full(count, 1 / count), size=size)
        drawn.append(_figures(people, weights.astype(np.float64)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail], axis=0)
    return Intervals(_figures(people, np.ones((1, count)))[0], low, high)


def _figures(people: PeopleSums, weights: np.ndarray) -> np.ndarray:
    """Figures [samples, figures] of people with these weights [samples, people].

    A trial in which nobody drawn has a query says nothing of that sample.
    """
    asked = weights @ people.counts  # [samples, trials]
    found = np.tensordot(weights, people.sums, axes=1)  # [samples, trials, figures]
    means = found / np.where(asked, asked, 1)[..., None]
    return means.sum(axis=1) / (asked > 0).sum(axis=1)[:, None]
