"""Two models on one experiment: both models' metrics, the differences, their confidence intervals. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from csdn.data.rng import generator
from csdn.evaluation.bootstrap import bootstrap_people, sums_of_people
from csdn.evaluation.metrics import QueryMetrics
from csdn.evaluation.protocols import Search
from csdn.evaluation.run import Experiment
from csdn.evaluation.scores import CameraPairs, Distances, Labels, pair_searches, query_trials
from csdn.retraining.gate import METRICS, Comparison

if TYPE_CHECKING:
    from csdn.params import GateParams


# A random stream of its own, far above those of csdn.data.rng.Stream.
_BOOTSTRAP = 1001
# The most pairs of cameras that are compared per direction, those with the most people first: minutes of
# work.
MAX_PAIRS = 1000


def compare(
    experiment: Experiment,
    champion: Distances,
    candidate: Distances,
    data: str,
    rule: GateParams,
    seed: int,
) -> list[Comparison]:
    """Each metric of each search of the experiment, then of each pair of cameras with at least `min_people`.

    The bootstrap draws are functions of (seed, search, pair): the same data gives the same intervals.
    """
    comparisons = []
    for number, search, query_camera, gallery_camera in _searches(experiment, rule.min_people):
        people = sums_of_people(
            paired_trials(search, experiment.labels, champion, candidate),
            people=int(experiment.labels.people.max()) + 1,
        )
        if not len(people.counts):
            continue
        draws = generator(seed, _BOOTSTRAP, number)
        intervals = 100 * np.array(bootstrap_people(people, rule.bootstrap_samples, rule.confidence, draws))
        value, low, high = intervals.reshape(3, 3, len(METRICS)).round(6)  # champion, candidate, difference
        comparisons += [
            Comparison(
                data=data,
                direction=search.name,
                metric=metric,
                champion=float(value[0, n]),
                candidate=float(value[1, n]),
                difference=float(value[2, n]),
                low=float(low[2, n]),
                high=float(high[2, n]),
                queries=int(people.counts[:, 0].sum()),
                people=len(people.counts),
                query_camera=query_camera,
                gallery_camera=gallery_camera,
            )
            for n, metric in enumerate(METRICS)
        ]
    return comparisons


def paired_trials(
    search: Search, labels: Labels, champion: Distances, candidate: Distances
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each trial the metrics float64 [n, 6] of the n queries that have a match, and their people [n].

    The columns are rank-1 and AP of the champion, of the candidate, and their differences, 0..1.
    """
    both = (query_trials(search, labels, distances) for distances in (champion, candidate))
    for (queries, old), (_, new) in zip(*both, strict=True):
        valid = old.valid  # whether there is a match: the same for both models
        before, after = _figures(old)[valid], _figures(new)[valid]
        yield np.concatenate([before, after, after - before], axis=1), labels.people[queries[valid]]


def _figures(queries: QueryMetrics) -> np.ndarray:
    """Rank-1 and AP of each query [q, 2], in the order of METRICS."""
    return np.stack([queries.first_rank == 1, queries.ap], axis=1)


def omitted_pairs(experiment: Experiment, rule: GateParams) -> int:
    """The number of pairs of cameras with `min_people` or more that `compare` omits beyond MAX_PAIRS."""
    return sum(
        _camera_pairs(search, experiment.labels, rule.min_people).left_out for search in experiment.searches
    )


def _camera_pairs(search: Search, labels: Labels, min_people: int) -> CameraPairs:
    return pair_searches(search, labels, min_people, MAX_PAIRS)


def _searches(
    experiment: Experiment, min_people: int
) -> Iterator[tuple[int, Search, str | None, str | None]]:
    """(number, search, cameras' names): the experiment's searches, then those between two cameras.

    The bootstrap draws depend on the number, which is the same however many pairs have enough people.
    """
    labels = experiment.labels
    names = dict(zip(labels.cameras.tolist(), experiment.index["camera"], strict=True))
    for number, search in enumerate(experiment.searches):
        yield number, search, None, None
    first = len(experiment.searches)
    for search in experiment.searches:
        pairs = _camera_pairs(search, labels, min_people)
        for query_camera, gallery_camera, place, pair in pairs.searches:
            yield first + place, pair, names[query_camera], names[gallery_camera]
        first += pairs.every
