"""Two models on one experiment -> the figures of both, their differences and how sure they are. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from csdn.evaluation.bootstrap import bootstrap_people, sums_of_people
from csdn.evaluation.metrics import QueryMetrics
from csdn.evaluation.protocols import Search
from csdn.evaluation.results import Experiment
from csdn.evaluation.scores import Distances, Labels, pair_searches, query_trials
from csdn.randomness import generator
from csdn.retraining.gate import METRICS, Comparison

if TYPE_CHECKING:
    from csdn.params import GateParams

# Own stream of randomness: far above those of csdn.randomness.Stream.
_BOOTSTRAP = 1001


def compare(
    experiment: Experiment,
    champion: Distances,
    newcomer: Distances,
    data: str,
    rule: GateParams,
    seed: int,
) -> list[Comparison]:
    """Each metric of each search of the experiment, then of each pair of cameras that has a query.

    Draws are functions of (seed, search, pair): the same data gives the same intervals.
    """
    found = []
    for number, (search, query_camera, gallery_camera) in enumerate(_searches(experiment)):
        people = sums_of_people(
            paired_trials(search, experiment.labels, champion, newcomer),
            people=int(experiment.labels.people.max()) + 1,
        )
        if not len(people.counts):
            continue
        draws = generator(seed, _BOOTSTRAP, number)
        intervals = 100 * np.array(bootstrap_people(people, rule.samples, rule.confidence, draws))
        value, low, high = intervals.reshape(3, 3, len(METRICS)).round(6)  # champion, newcomer, difference
        found += [
            Comparison(
                data=data,
                direction=search.name,
                metric=metric,
                champion=float(value[0, n]),
                newcomer=float(value[1, n]),
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
    return found


def paired_trials(
    search: Search, labels: Labels, champion: Distances, newcomer: Distances
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each trial the figures float64 [n, 6] of the queries that have a right image, and who asks [n].

    The columns are rank-1 and mAP of the champion, of the newcomer, and their differences, 0..1.
    """
    both = (query_trials(search, labels, distances) for distances in (champion, newcomer))
    for (queries, old), (_, new) in zip(*both, strict=True):
        valid = old.valid  # whether there is a right image: the same for both
        before, after = _figures(old)[valid], _figures(new)[valid]
        yield np.concatenate([before, after, after - before], axis=1), labels.people[queries[valid]]


def _figures(queries: QueryMetrics) -> np.ndarray:
    """Rank-1 and AP of each query [q, 2], in the order of METRICS."""
    return np.stack([queries.first_rank == 1, queries.ap], axis=1)


def _searches(experiment: Experiment) -> Iterator[tuple[Search, str | None, str | None]]:
    """The experiment's searches, then each between two cameras, with the cameras' names."""
    names = dict(zip(experiment.labels.cameras.tolist(), experiment.index["camera"], strict=True))
    for search in experiment.searches:
        yield search, None, None
    for search in experiment.searches:
        for query_camera, gallery_camera, pair in pair_searches(search, experiment.labels):
            yield pair, names[query_camera], names[gallery_camera]
