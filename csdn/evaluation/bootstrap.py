"""How sure a difference of two models is: a paired bootstrap over people. Pure, in float64.

Both models answer the same queries from the same galleries, so each query gives one difference. Images of one
person are no independent evidence: people are drawn with replacement, each with all their queries of all
trials. The galleries stay as they are: what varies is who asks, not who stands in the way.
"""

from __future__ import annotations

from collections.abc import Iterable
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


def sums_of_people(trials: Iterable[tuple[np.ndarray, np.ndarray]], people: int) -> PeopleSums:
    """Each trial's values [n, figures] of its n queries, and who asked: numbers [n] below `people`.

    People without a query are left out. Trials are taken one by one, and not kept. Raises ValueError where a
    trial's two do not fit, and where a value is not finite.
    """
    parts = [_sums_of_trial(values, who, people) for values, who in trials]
    sums, counts = (np.stack(part, axis=1) for part in zip(*parts, strict=True))
    there = counts.any(axis=1)
    return PeopleSums(sums[there], counts[there])


def _sums_of_trial(values: np.ndarray, who: np.ndarray, people: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums [people, figures] and counts [people]."""
    if values.ndim != 2 or len(values) != len(who):
        raise ValueError(f"values {values.shape} of {len(who)} queries do not fit")
    if not np.isfinite(values).all():
        raise ValueError("the value of a query is not finite: leave out queries that have no right image")
    sums = [np.bincount(who, weights=column, minlength=people) for column in values.T]
    return np.stack(sums, axis=1), np.bincount(who, minlength=people).astype(np.float64)


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
