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
    pairs: bool = True,
) -> list[Comparison]:
    """Each metric of each search of the experiment, then of each pair of cameras that has a query (`pairs`).

    Draws are functions of (seed, search, pair): the same data gives the same intervals.
    """
    found = []
    for number, (search, query_camera, gallery_camera) in enumerate(_searches(experiment, pairs)):
        queries = paired_queries(search, experiment.labels, champion, newcomer)
        if not len(queries[0]):
            continue
        draws = generator(seed, _BOOTSTRAP, number)
        intervals = 100 * np.array(
            bootstrap_people(sums_of_people(*queries), rule.samples, rule.confidence, draws)
        )
        value, low, high = intervals.reshape(3, 3, len(METRICS)).round(6)  # champion, newcomer, difference
        _, people, trials = queries
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
                queries=int((trials == trials[0]).sum()),
                people=len(np.unique(people)),
                query_camera=query_camera,
                gallery_camera=gallery_camera,
            )
            for n, metric in enumerate(METRICS)
        ]
    return found


def paired_queries(
    search: Search, labels: Labels, champion: Distances, newcomer: Distances
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Figures float64 [n, 6] of the queries that have a right image, over all trials; people [n], trials [n].

    The columns are rank-1 and mAP of the champion, of the newcomer, and their differences, 0..1.
    """
    values, people, trials = [np.zeros((0, 3 * len(METRICS)))], [labels.people[:0]], [np.zeros(0, np.int64)]
    both = (query_trials(search, labels, distances) for distances in (champion, newcomer))
    for trial, ((queries, old), (_, new)) in enumerate(zip(*both, strict=True)):
        valid = old.valid  # whether there is a right image: the same for both
        before, after = _figures(old)[valid], _figures(new)[valid]
        values.append(np.concatenate([before, after, after - before], axis=1))
        people.append(labels.people[queries[valid]])
        trials.append(np.full(int(valid.sum()), trial))
    return np.concatenate(values), np.concatenate(people), np.concatenate(trials)


def _figures(queries: QueryMetrics) -> np.ndarray:
    """Rank-1 and AP of each query [q, 2], in the order of METRICS."""
    return np.stack([queries.first_rank == 1, queries.ap], axis=1)


def _searches(experiment: Experiment, pairs: bool) -> Iterator[tuple[Search, str | None, str | None]]:
    """The experiment's searches, then each between two cameras, with the cameras' names."""
    names = dict(zip(experiment.labels.cameras.tolist(), experiment.index["camera"], strict=True))
    for search in experiment.searches:
        yield search, None, None
    for search in experiment.searches if pairs else ():
        for query_camera, gallery_camera, pair in pair_searches(search, experiment.labels):
            yield pair, names[query_camera], names[gallery_camera]
