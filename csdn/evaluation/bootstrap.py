"""Confidence intervals by a bootstrap over people (a cluster bootstrap). Pure, in float64.

For a paired comparison both models search with the same queries in the same galleries, so each query gives
one difference. Images of one person are not independent, so people are resampled, not queries: with
replacement, each person with all their queries of all trials. The galleries stay fixed: the intervals cover
the choice of the query people, not that of the gallery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

# A resample is a row of counts [people]; this bounds the numbers held in memory at a time.
_MAX_COUNTS = 4_000_000


class PeopleSums(NamedTuple):
    """Sums of per-query values for each person and trial: all that a mean over queries needs."""

    sums: np.ndarray  # float64 [people, trials, figures]
    counts: np.ndarray  # float64 [people, trials], number of queries; each person has one in some trial


class Intervals(NamedTuple):
    """Of each figure, float64 [figures]: its value on all people, and the ends of its interval."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def sums_of_people(trials: Iterable[tuple[np.ndarray, np.ndarray]], people: int) -> PeopleSums:
    """Sums over trials, each given as values [n, figures] of its n queries and their people [n], from 0.

    People without a query are left out. Trials are read one by one, and not kept. Raises ValueError where
    values and people differ in length, and where a value is not finite.
    """
    parts = [_sums_of_trial(values, labels, people) for values, labels in trials]
    sums, counts = (np.stack(part, axis=1) for part in zip(*parts, strict=True))
    has_query = counts.any(axis=1)
    return PeopleSums(sums[has_query], counts[has_query])


def _sums_of_trial(values: np.ndarray, labels: np.ndarray, people: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums [people, figures] and counts [people]."""
    if values.ndim != 2 or len(values) != len(labels):
        raise ValueError(f"values {values.shape} of {len(labels)} queries do not fit")
    if not np.isfinite(values).all():
        raise ValueError("the value of a query is not finite: leave out queries without a match")
    sums = [np.bincount(labels, weights=column, minlength=people) for column in values.T]
    return np.stack(sums, axis=1), np.bincount(labels, minlength=people).astype(np.float64)


def bootstrap_people(
    people: PeopleSums, samples: int, confidence: float, draws: np.random.Generator
) -> Intervals:
    """Percentile intervals of the figures over resamples of the people.

    A figure is the mean over the trials of the mean over a trial's queries, as in metrics/evaluation.json.
    samples: number of resamples; confidence: share of their figures inside the interval, 0..1. NaN without
    people.
    """
    count = len(people.counts)
    if not count:
        nothing = np.full(people.sums.shape[2], np.nan)
        return Intervals(nothing, nothing, nothing)
    return bootstrap(lambda weights: _figures(people, weights), count, samples, confidence, draws)


def bootstrap(
    figures: Callable[[np.ndarray], np.ndarray],
    count: int,
    samples: int,
    confidence: float,
    draws: np.random.Generator,
) -> Intervals:
    """`bootstrap_people` for any figures of `count` people, at least one.

    figures: from weights [n, people], how often each person counts in n resamples, to the figures of each
    resample [n, figures].
    """
    drawn, step = [], max(1, _MAX_COUNTS // count)
    for start in range(0, samples, step):
        size = min(step, samples - start)
        weights = draws.multinomial(count, np.full(count, 1 / count), size=size)
        drawn.append(figures(weights.astype(np.float64)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail], axis=0)
    return Intervals(figures(np.ones((1, count)))[0], low, high)


def _figures(people: PeopleSums, weights: np.ndarray) -> np.ndarray:
    """Figures [samples, figures] of people with these weights [samples, people].

    A trial without queries of the drawn people is left out of the mean over trials.
    """
    queries = weights @ people.counts  # [samples, trials]
    sums = np.tensordot(weights, people.sums, axes=1)  # [samples, trials, figures]
    means = sums / np.where(queries, queries, 1)[..., None]
    return means.sum(axis=1) / (queries > 0).sum(axis=1)[:, None]
