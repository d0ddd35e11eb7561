"""Scores of a protocol's searches, in percent, as mean and standard deviation over the trials. Pure.

In this order: metrics of each trial, tables of figures, the searches between two cameras alone, and the mean
of several models.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from csdn.evaluation.distances import Distances, Rows, Trial
from csdn.evaluation.metrics import RANKS, RankMetrics, summary
from csdn.evaluation.protocols import Search
from csdn.evaluation.ranking import RULES, QueryMetrics, RankedGallery, Rule

HEADLINE_RANKS = (1, 5, 10, 20)
# Most pairs of cameras of a direction that get figures of their own, those with the most people in common. If
# each image had a camera of its own, all pairs would be as many as the images squared.
PAIRS = 200


@dataclass(frozen=True)
class Labels:
    """Person and camera of each row of the index, as numbers or names [n]."""

    people: np.ndarray
    cameras: np.ndarray


# Metrics of the trials of searches.


class Found(NamedTuple):
    """Metrics of each search's trials, and the head of the first search's ranking in trial 0."""

    trials: list[list[QueryMetrics]]
    top: np.ndarray  # int64 [q, n], rows of the index, the best first; -1: none


def query_trials(searches: Sequence[Search], labels: Labels, distances: Distances, top: int = 0) -> Found:
    """Metrics of each query, by search and trial, from one pass over the distances.

    top: number of images at the head of the first search's ranking in trial 0. Blocks of distances are ranked
    by as many threads as torch has (scaling.threads).
    """
    rules = [search.rule for search in searches for _ in search.galleries]
    parts = [
        Trial(search.queries_of(trial), gallery, trial)
        for search in searches
        for trial, gallery in enumerate(search.galleries)
    ]
    galleries = [
        RankedGallery(labels.people[one.gallery], labels.cameras[one.gallery], rule)
        for one, rule in zip(parts, rules, strict=True)
    ]
    found = [QueryMetrics.of(len(one.queries)) for one in parts]
    head = np.full((len(parts[0].queries), min(top, len(parts[0].gallery))), -1)

    def rank(rows: Rows) -> None:
        number, places, read = rows
        queries, gallery = parts[number].queries[places], galleries[number]
        of_queries = labels.people[queries], labels.cameras[queries]
        distances = read()
        found[number].put(places, gallery.metrics(distances, *of_queries))
        if top and number == 0:
            images = gallery.top(distances, *of_queries, top)
            head[places] = np.append(parts[0].gallery, -1)[images]  # the last is -1

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for block in distances.blocks(parts, labels.cameras):
            deque(threads.map(rank, block), maxlen=0)
            del block  # before the next is made
    metrics = iter(found)
    return Found([[next(metrics) for _ in search.galleries] for search in searches], head)


def trial_metrics(search: Search, labels: Labels, distances: Distances) -> list[RankMetrics]:
    """The metrics of each trial of a search; raises ValueError where a gallery is empty."""
    if not all(map(len, search.galleries)):
        raise ValueError("the gallery has no images: nothing can be found in it")
    return [summary(queries) for queries in query_trials([search], labels, distances).trials[0]]


# Figures over the trials.


def trial_statistics(trials: Sequence[RankMetrics]) -> dict[str, dict[str, float | None]]:
    """rank1, rank5, rank10, rank20, mAP, mINP as {"mean", "std"} over the trials, in percent."""
    fractions = {f"rank{rank}": [trial.cmc[rank - 1] for trial in trials] for rank in HEADLINE_RANKS}
    fractions["mAP"] = [trial.mean_ap for trial in trials]
    fractions["mINP"] = [trial.mean_inp for trial in trials]
    return {name: mean_and_std(100 * np.asarray(values)) for name, values in fractions.items()}


def with_sampling_error(
    figures: dict[str, dict[str, float | None]], search: Search, trials: Sequence[QueryMetrics]
) -> dict[str, dict[str, float | None]]:
    """The figures of sampled queries, each with "error": its standard error as an estimate for all queries.

    In points; None for fewer than two valid queries. The queries are drawn without replacement. The same
    queries in all trials count by their means over the trials; queries drawn for each trial are independent.
    """
    left = 1 - len(search.queries) / (search.sampled_from or len(search.queries))
    values = np.stack([_of_queries(queries) for queries in trials])  # [trials, figures, queries]
    if not search.drawn_queries:
        values = _mean_of_known(values)[None]
    known = np.isfinite(values)
    count = known.sum(axis=2)
    deviation = np.where(known, values - _mean_of_known(values.transpose(2, 0, 1))[..., None], 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = left * (deviation**2).sum(axis=2) / (count - 1) / count
    errors = 100 * np.sqrt(variance.sum(axis=0)) / len(values)
    return {
        name: figure | {"error": round(float(error), 6) if np.isfinite(error) else None}
        for (name, figure), error in zip(figures.items(), errors, strict=True)
    }


def _of_queries(queries: QueryMetrics) -> np.ndarray:
    """The figures of `trial_statistics` for each query, fractions [figures, queries]; NaN: invalid."""
    ranks = [np.where(queries.valid, queries.first_rank <= rank, np.nan) for rank in HEADLINE_RANKS]
    return np.stack([*ranks, queries.ap, queries.inp])


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the first dimension of the values that are not NaN; NaN without any."""
    count = np.isfinite(values).sum(axis=0)
    return np.where(count > 0, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)


def cmc_rows(trials: Sequence[RankMetrics], method: str, direction: str) -> list[dict[str, Any]]:
    """The mean CMC as rows rank, score (percent), method, direction."""
    means = [mean_and_std([100 * trial.cmc[rank] for trial in trials])["mean"] for rank in range(RANKS)]
    return [
        {"rank": rank, "score": score, "method": method, "direction": direction}
        for rank, score in enumerate(means, start=1)
    ]


def mean_and_std(values: Sequence[float | None] | np.ndarray) -> dict[str, float | None]:
    """Mean and sample standard deviation to 6 digits; None where one is not known, std also of one value.

    >>> mean_and_std([10.0, 20.0, 30.0])
    {'mean': 20.0, 'std': 10.0}
    """
    values = np.asarray(values, np.float64)
    known = bool(np.isfinite(values).all())
    return {
        "mean": round(float(values.mean()), 6) if known else None,
        "std": round(float(values.std(ddof=1)), 6) if known and len(values) > 1 else None,
    }


# Pairs of cameras: the same search with the queries of one camera and the gallery images of another.


class PairSearch(NamedTuple):
    """The search between two cameras alone; cameras as in `Labels`, `number` in the table of all pairs."""

    query_camera: Any
    gallery_camera: Any
    number: int
    search: Search


class CameraPairs(NamedTuple):
    """Pairs of cameras that get figures of their own, in the order of the cameras."""

    searches: list[PairSearch]
    every: int  # number of pairs, whether they have people in common or not
    left_out: int  # pairs that qualify but exceed the limit


def camera_pairs(
    search: Search, pairs: Sequence[PairSearch], trials: Sequence[Sequence[QueryMetrics]]
) -> list[dict[str, Any]]:
    """A row for each pair of cameras of a search, from the metrics of its trials.

    queries: valid ones of trial 0; rank1, mAP: percent, means over the trials (None without a valid query).
    """
    rows = []
    for pair, found in zip(pairs, trials, strict=True):
        metrics = [summary(queries) for queries in found]
        figures = trial_statistics(metrics)
        rows.append(
            {
                "direction": search.name,
                "query_camera": pair.query_camera,
                "gallery_camera": pair.gallery_camera,
                "queries": metrics[0].valid_queries,
                "rank1": figures["rank1"]["mean"],
                "mAP": figures["mAP"]["mean"],
            }
        )
    return rows


def pair_searches(
    search: Search, labels: Labels, least_people: int = 0, most_pairs: int = PAIRS
) -> CameraPairs:
    """The searches between two cameras alone, for pairs with at least `least_people` people in common.

    A person is in common if one camera has a query of them and the other a gallery image that the rule does
    not remove. If there are more than `most_pairs` pairs, those with the most people in common are taken.
    """
    queries, galleries = (
        [_by_camera(rows, labels) for rows in trials]
        for trials in (search.drawn_queries or (search.queries,), search.galleries)
    )
    query_people, gallery_people = (_people_of_cameras(trials, labels) for trials in (queries, galleries))
    numbers, left_out = _chosen_pairs(
        query_people, gallery_people, RULES[search.rule], least_people, most_pairs
    )
    query_cameras, gallery_cameras = list(query_people), list(gallery_people)
    nothing = search.queries[:0]
    found = []
    for number in numbers.tolist():
        row, column = divmod(number, len(gallery_cameras))
        query_camera, gallery_camera = query_cameras[row], gallery_cameras[column]
        drawn = tuple(rows.get(query_camera, nothing) for rows in queries)
        pair = replace(
            search,
            queries=drawn[0],
            galleries=tuple(rows.get(gallery_camera, nothing) for rows in galleries),
            drawn_queries=drawn if search.drawn_queries else (),
        )
        found.append(PairSearch(query_camera, gallery_camera, number, pair))
    return CameraPairs(found, len(query_cameras) * len(gallery_cameras), left_out)


def _by_camera(rows: np.ndarray, labels: Labels) -> dict[Any, np.ndarray]:
    """Rows of the index by their camera, each in their order."""
    order = np.argsort(labels.cameras[rows], kind="stable")
    names, starts = np.unique(labels.cameras[rows][order], return_index=True)
    return dict(zip(names.tolist(), np.split(rows[order], starts)[1:], strict=True))


def _people_of_cameras(trials: Sequence[Mapping[Any, np.ndarray]], labels: Labels) -> dict[Any, np.ndarray]:
    """The people of whom each camera has an image in any trial; cameras ascending."""
    cameras = sorted(set().union(*trials))
    return {
        camera: np.unique(labels.people[np.concatenate([rows[camera] for rows in trials if camera in rows])])
        for camera in cameras
    }


def _chosen_pairs(
    query_people: Mapping[Any, np.ndarray],
    gallery_people: Mapping[Any, np.ndarray],
    rule: Rule,
    least: int,
    most: int,
) -> tuple[np.ndarray, int]:
    """Numbers of the chosen pairs in the table of all, ascending, and the count of qualified pairs left out.

    query_people, gallery_people: the people of each camera. Only the `most` query and gallery cameras with
    the most people are compared, so the work grows with the images and not with the square of the cameras.
    """
    everything = len(query_people) * len(gallery_people)
    if not least and everything <= most:
        return np.arange(everything), 0
    rows, columns = (
        _busiest(list(people.values()), least, most) for people in (query_people, gallery_people)
    )
    common = np.zeros((len(rows), len(columns)), np.int64)
    if not common.size:
        return np.zeros(0, np.int64), 0
    query_cameras, gallery_cameras = (
        np.array(list(query_people))[rows],
        np.array(list(gallery_people))[columns],
    )
    in_gallery = [gallery_people[camera] for camera in gallery_cameras.tolist()]
    people, column = (
        np.concatenate(in_gallery),
        np.repeat(np.arange(len(columns)), list(map(len, in_gallery))),
    )
    for row, camera in enumerate(query_cameras.tolist()):
        common[row] = np.bincount(column[np.isin(people, query_people[camera])], minlength=len(columns))
    common[rule.excluded(query_cameras[:, None], gallery_cameras, np.ones(common.shape, bool))] = 0
    enough = np.flatnonzero(common >= max(least, 1))
    best = enough[np.argsort(-common.ravel()[enough], kind="stable")[:most]]
    numbers = rows[best // len(columns)] * len(gallery_people) + columns[best % len(columns)]
    return np.sort(numbers), (len(enough) if least else everything) - len(best)


def _busiest(people: Sequence[np.ndarray], least: int, most: int) -> np.ndarray:
    """The `most` cameras with the most people, of those with at least `least`; numbers, ascending."""
    sizes = np.array([len(of) for of in people])
    found = np.sort(np.argsort(-sizes, kind="stable")[:most])
    return found[sizes[found] >= least]


# The mean of several models: RegDB's ten trials are ten models, and the published figure is their mean.

NO_METHODS = ("counts", "open_set")  # of metrics/evaluation.json; thresholds of two models have no mean


def average(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and deviation over models of each figure's mean; a model is a content of metrics/evaluation.json.

    `counts` are the first model's, with the number of `models`. Raises ValueError where the models were not
    evaluated in the same way.
    """
    shapes = [shape(model) for model in models]
    if any(other != shapes[0] for other in shapes):
        raise ValueError("the files hold figures of different protocols or sizes; they have no common mean")
    methods = {
        method: {
            direction: {
                name: mean_and_std([model[method][direction][name]["mean"] for model in models])
                for name in figures
            }
            for direction, figures in directions.items()
        }
        for method, directions in models[0].items()
        if method not in NO_METHODS
    }
    counts = {name: {**count, "models": len(models)} for name, count in models[0]["counts"].items()}
    return {**methods, "counts": counts}


def shape(model: Mapping[str, Any]) -> Any:
    """What must be the same: methods, directions, figures, and numbers of queries and gallery images."""
    counts = {
        name: tuple(count[what] for what in ("queries", "gallery", "trials"))
        for name, count in model["counts"].items()
    }
    figures = {
        (method, direction): sorted(found)
        for method, directions in model.items()
        if method not in NO_METHODS
        for direction, found in directions.items()
    }
    return figures, counts
