"""Features and a protocol's searches -> figures in percent, with their spread over the trials. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from csdn.evaluation.baselines import chance_distances
from csdn.evaluation.metrics import (
    RANKS,
    Array,
    DotDistances,
    QueryMetrics,
    RankMetrics,
    query_metrics,
    rank_metrics,
    top_ranked,
)
from csdn.evaluation.protocols import Search

HEADLINE_RANKS = (1, 5, 10, 20)

# Distances [queries, gallery] between rows of the index, in one trial.
Distances = Callable[[np.ndarray, np.ndarray, int], Array | DotDistances]


@dataclass(frozen=True)
class Labels:
    """Person and camera of each row of the index, as numbers or names [n]."""

    people: np.ndarray
    cameras: np.ndarray


def feature_distances(features: np.ndarray) -> Distances:
    """Distances of features [n, D] of the index's rows: dot products, the same in every trial."""
    return lambda queries, gallery, trial: DotDistances(features[queries], features[gallery])


def guesses(seed: int, search: int) -> Distances:
    """Distances of somebody who guesses, new ones for each trial; `search` numbers the search."""
    return lambda queries, gallery, trial: chance_distances(len(queries), len(gallery), seed, search, trial)


def trial_metrics(search: Search, labels: Labels, distances: Distances) -> list[RankMetrics]:
    """The figures of each trial of a search."""
    return [
        rank_metrics(*_arguments(search, labels, distances, gallery, trial))
        for trial, gallery in enumerate(search.galleries)
    ]


def query_trials(
    search: Search, labels: Labels, distances: Distances
) -> Iterator[tuple[np.ndarray, QueryMetrics]]:
    """Of each trial of a search: its queries, as rows of the index [q], and the figures of each."""
    for trial, gallery in enumerate(search.galleries):
        yield search.asking(trial), query_metrics(*_arguments(search, labels, distances, gallery, trial))


def first_trial(
    search: Search, labels: Labels, distances: Distances, count: int = 10
) -> tuple[QueryMetrics, np.ndarray, np.ndarray]:
    """Trial 0: the figures of each query, and as rows of the index (-1: none) what it ranks first
    [q, count] and the right image that it ranks best [q].
    """
    gallery = search.galleries[0]
    arguments = _arguments(search, labels, distances, gallery, 0)
    metrics, rows = query_metrics(*arguments), np.append(gallery, -1)  # place -1 is the entry behind the end
    return metrics, rows[top_ranked(*arguments, count=count)], rows[metrics.first_right]


def camera_pairs(search: Search, labels: Labels, distances: Distances) -> list[dict[str, Any]]:
    """One row for each (query camera, gallery camera): the search with the images of these two cameras only.

    queries: those with a valid match; rank1, mAP: percent, means over the trials (None without a query).
    """
    rows = []
    for query_camera, gallery_camera, pair in pair_searches(search, labels):
        trials = trial_metrics(pair, labels, distances)
        rows.append(
            {
                "direction": search.name,
                "query_camera": query_camera,
                "gallery_camera": gallery_camera,
                "queries": trials[0].valid_queries,
                "rank1": spread([trial.cmc[0] for trial in trials])["mean"],
                "mAP": spread([trial.mean_ap for trial in trials])["mean"],
            }
        )
    return rows


def pair_searches(search: Search, labels: Labels) -> Iterator[tuple[Any, Any, Search]]:
    """(query camera, gallery camera, the search between these two alone), cameras as in `labels`."""
    gallery_cameras = np.unique(labels.cameras[search.galleries[0]])
    for query_camera in np.unique(labels.cameras[search.queries]):
        for gallery_camera in gallery_cameras:
            yield (
                query_camera,
                gallery_camera,
                search.among(labels.cameras == query_camera, labels.cameras == gallery_camera),
            )


def headline(trials: Sequence[RankMetrics]) -> dict[str, dict[str, float | None]]:
    """rank1, rank5, rank10, rank20, mAP, mINP as {"mean", "std"} over the trials, in percent."""
    figures = {f"rank{rank}": [trial.cmc[rank - 1] for trial in trials] for rank in HEADLINE_RANKS}
    figures["mAP"] = [trial.mean_ap for trial in trials]
    figures["mINP"] = [trial.mean_inp for trial in trials]
    return {name: spread(values) for name, values in figures.items()}


def cmc_rows(trials: Sequence[RankMetrics], method: str, direction: str) -> list[dict[str, Any]]:
    """The mean CMC as rows rank, score (percent), method, direction."""
    means = [spread([trial.cmc[rank] for trial in trials])["mean"] for rank in range(RANKS)]
    return [
        {"rank": rank, "score": score, "method": method, "direction": direction}
        for rank, score in enumerate(means, start=1)
    ]


def spread(fractions: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation in percent, to 6 digits; None for what cannot be known."""
    values = 100 * np.asarray(fractions)
    known = bool(np.isfinite(values).all())
    return {
        "mean": round(float(values.mean()), 6) if known else None,
        "std": round(float(values.std(ddof=1)), 6) if known and len(values) > 1 else None,
    }


def _arguments(
    search: Search, labels: Labels, distances: Distances, gallery: np.ndarray, trial: int
) -> tuple[Any, ...]:
    """What the functions of csdn.evaluation.metrics take."""
    queries = search.asking(trial)
    return (
        distances(queries, gallery, trial),
        labels.people[queries],
        labels.people[gallery],
        labels.cameras[queries],
        labels.cameras[gallery],
        search.rule,
    )
