"""Features and a protocol's searches -> figures in percent, with their spread over the trials. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from csdn.evaluation.baselines import chance_distances
from csdn.evaluation.metrics import (
    RANKS,
    RULES,
    Array,
    NegatedDotProducts,
    QueryMetrics,
    RankMetrics,
    Rule,
    query_metrics,
    rank_metrics,
    top_ranked,
)
from csdn.evaluation.protocols import Search

HEADLINE_RANKS = (1, 5, 10, 20)
# Pairs of cameras of a direction that get figures of their own, at most: those of 20 cameras that search in
# 20, a table that a person can read. Where each image has a camera of its own, all pairs would be as many as
# the images squared.
PAIRS = 400

# Distances [queries, gallery] between rows of the index, in one trial.
Distances = Callable[[np.ndarray, np.ndarray, int], Array | NegatedDotProducts]


@dataclass(frozen=True)
class Labels:
    """Person and camera of each row of the index, as numbers or names [n]."""

    people: np.ndarray
    cameras: np.ndarray


def feature_distances(features: np.ndarray) -> Distances:
    """Distances of features [n, D] of the index's rows: dot products, the same in every trial."""
    return lambda queries, gallery, trial: NegatedDotProducts(features[queries], features[gallery])


def random_ranking(seed: int, search: int) -> Distances:
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
        yield search.queries_of(trial), query_metrics(*_arguments(search, labels, distances, gallery, trial))


def first_trial(
    search: Search, labels: Labels, distances: Distances, count: int = 10
) -> tuple[QueryMetrics, np.ndarray, np.ndarray]:
    """Trial 0: the figures of each query, and as rows of the index (-1: none) what it ranks first
    [q, count] and the right image that it ranks best [q].
    """
    gallery = search.galleries[0]
    arguments = _arguments(search, labels, distances, gallery, 0)
    metrics, rows = query_metrics(*arguments), np.append(gallery, -1)  # place -1 is the entry behind the end
    return metrics, rows[top_ranked(*arguments, count=count)], rows[metrics.first_match]


class PairSearch(NamedTuple):
    """The search between two cameras alone; cameras as in `Labels`, `place` in the table of all pairs."""

    query_camera: Any
    gallery_camera: Any
    place: int
    search: Search


class CameraPairs(NamedTuple):
    """Pairs of cameras that get figures of their own, in the order of the cameras."""

    searches: list[PairSearch]
    every: int  # pairs that there are, whether anybody is in common or not
    left_out: int  # that should have figures, and are too many


def camera_pairs(search: Search, labels: Labels, distances: Distances) -> tuple[list[dict[str, Any]], int]:
    """A row for each pair of cameras: the search with the images of these two alone; and the pairs left out.

    queries: those with a valid match; rank1, mAP: percent, means over the trials (None without a query).
    """
    pairs = pair_searches(search, labels)
    rows = []
    for query_camera, gallery_camera, _, pair in pairs.searches:
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
    return rows, pairs.left_out


def pair_searches(
    search: Search, labels: Labels, least_people: int = 0, most_pairs: int = PAIRS
) -> CameraPairs:
    """The searches between two cameras alone, for pairs that have at least so many people in common.

    A person is in common where one camera has a query of them and the other a gallery image that the rule
    lets it see. Of more than `most_pairs` pairs those with the most people in common are taken.
    """
    queries, galleries = (
        [_by_camera(rows, labels) for rows in trials]
        for trials in (search.drawn_queries or (search.queries,), search.galleries)
    )
    asking, answering = (_people_of_cameras(trials, labels) for trials in (queries, galleries))
    places, left_out = _chosen(asking, answering, RULES[search.rule], least_people, most_pairs)
    asked, answered = list(asking), list(answering)
    nothing = search.queries[:0]
    found = []
    for place in places.tolist():
        query, gallery = asked[place // len(answered)], answered[place % len(answered)]
        drawn = tuple(rows.get(query, nothing) for rows in queries)
        pair = replace(
            search,
            queries=drawn[0],
            galleries=tuple(rows.get(gallery, nothing) for rows in galleries),
            drawn_queries=drawn if search.drawn_queries else (),
        )
        found.append(PairSearch(query, gallery, place, pair))
    return CameraPairs(found, len(asked) * len(answered), left_out)


def _by_camera(rows: np.ndarray, labels: Labels) -> dict[Any, np.ndarray]:
    """Rows of the index by their camera, each in their order."""
    order = np.argsort(labels.cameras[rows], kind="stable")
    names, starts = np.unique(labels.cameras[rows][order], return_index=True)
    return dict(zip(names.tolist(), np.split(rows[order], starts)[1:], strict=True))


def _people_of_cameras(trials: Sequence[Mapping[Any, np.ndarray]], labels: Labels) -> dict[Any, np.ndarray]:
    """Whom each camera has an image of in any trial, cameras rising."""
    cameras = sorted(set().union(*trials))
    return {
        camera: np.unique(labels.people[np.concatenate([rows[camera] for rows in trials if camera in rows])])
        for camera in cameras
    }


def _chosen(
    asking: Mapping[Any, np.ndarray], answering: Mapping[Any, np.ndarray], rule: Rule, least: int, most: int
) -> tuple[np.ndarray, int]:
    """Places of pairs in the table of all, rising, and how many pairs with enough people are left out.

    asking, answering: the people of each camera. Only the `most` cameras of a side that have the most
    people are counted together, so the work grows with the images and not with the square of the cameras.
    """
    everything = len(asking) * len(answering)
    if not least and everything <= most:
        return np.arange(everything), 0
    rows, columns = (_busiest(list(side.values()), least, most) for side in (asking, answering))
    common = np.zeros((len(rows), len(columns)), np.int64)
    if not common.size:
        return np.zeros(0, np.int64), 0
    query_cameras, gallery_cameras = np.array(list(asking))[rows], np.array(list(answering))[columns]
    seen_by = [answering[camera] for camera in gallery_cameras.tolist()]
    people, column = np.concatenate(seen_by), np.repeat(np.arange(len(columns)), list(map(len, seen_by)))
    for number, camera in enumerate(query_cameras.tolist()):
        common[number] = np.bincount(column[np.isin(people, asking[camera])], minlength=len(columns))
    common[rule.excluded(query_cameras[:, None], gallery_cameras, np.ones(common.shape, bool))] = 0
    enough = np.flatnonzero(common >= max(least, 1))
    best = enough[np.argsort(-common.ravel()[enough], kind="stable")[:most]]
    places = rows[best // len(columns)] * len(answering) + columns[best % len(columns)]
    return np.sort(places), (len(enough) if least else everything) - len(best)


def _busiest(people: Sequence[np.ndarray], least: int, most: int) -> np.ndarray:
    """The `most` cameras with the most people, of those with enough; numbers, rising."""
    sizes = np.array([len(of) for of in people])
    found = np.sort(np.argsort(-sizes, kind="stable")[:most])
    return found[sizes[found] >= least]


def headline_figures(trials: Sequence[RankMetrics]) -> dict[str, dict[str, float | None]]:
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
    queries = search.queries_of(trial)
    return (
        distances(queries, gallery, trial),
        labels.people[queries],
        labels.people[gallery],
        labels.cameras[queries],
        labels.cameras[gallery],
        search.rule,
    )


# The figures of several models as one: RegDB's ten trials are ten models, their mean is published. Pure.


def average(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and deviation over the models of each figure's mean; each is what metrics/evaluation.json holds.

    `counts` are the first model's, with `models`, how many there are. Raises ValueError where the models
    were not evaluated in the same way.
    """
    shapes = [shape(model) for model in models]
    if any(other != shapes[0] for other in shapes):
        raise ValueError("the files hold figures of different protocols or sizes; they have no common mean")
    methods = {
        method: {
            direction: {
                name: _spread([model[method][direction][name]["mean"] for model in models])
                for name in figures
            }
            for direction, figures in directions.items()
        }
        for method, directions in models[0].items()
        if method != "counts"
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
        if method != "counts"
        for direction, found in directions.items()
    }
    return figures, counts


def _spread(means: Sequence[float | None]) -> dict[str, float | None]:
    if None in means:
        return {"mean": None, "std": None}
    return {
        "mean": round(float(np.mean(means)), 6),
        "std": round(float(np.std(means, ddof=1)), 6) if len(means) > 1 else None,
    }
