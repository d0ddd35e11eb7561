"""Two models on one experiment: both models' metrics, the differences, their confidence intervals. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from csdn.data.rng import generator
from csdn.evaluation.bootstrap import PeopleSums, bootstrap_people, sums_of_people
from csdn.evaluation.distances import Distances
from csdn.evaluation.protocols import Search
from csdn.evaluation.ranking import QueryMetrics
from csdn.evaluation.run import Experiment
from csdn.evaluation.scores import Labels, pair_searches, query_trials
from csdn.retraining.gate import METRICS, Comparison

if TYPE_CHECKING:
    from csdn.params import GateParams


# A random stream of its own, far above those of csdn.data.rng.Stream.
_BOOTSTRAP = 1001


class Compared(NamedTuple):
    """A search over all cameras, or between two; the number decides the draws of its bootstrap."""

    number: int
    search: Search
    query_camera: str | None
    gallery_camera: str | None


def compare(
    experiment: Experiment,
    champion: Distances,
    candidate: Distances,
    data: str,
    rule: GateParams,
    seed: int,
    of_pairs: bool = True,
) -> list[Comparison]:
    """Each metric of each search of the experiment, then of each pair of cameras with at least `min_people`.

    The bootstrap draws are functions of (seed, search, pair): the same data gives the same intervals.
    of_pairs: False leaves the pairs out.
    """
    overall: list[Comparison] = []
    apart: list[Comparison] = []
    for compared in _searches(experiment, rule.min_people) if of_pairs else _whole_searches(experiment):
        searches = [one.search for one in compared]
        both = [query_trials(searches, experiment.labels, model).trials for model in (champion, candidate)]
        for one, before, after in zip(compared, *both, strict=True):
            people = sums_of_people(
                paired_trials(one.search, experiment.labels, before, after),
                people=int(experiment.labels.people.max()) + 1,
            )
            found = _comparisons(one, people, data, rule, generator(seed, _BOOTSTRAP, one.number))
            (overall if one is compared[0] else apart).extend(found)
    return overall + apart


def _comparisons(
    one: Compared, people: PeopleSums, data: str, rule: GateParams, draws: np.random.Generator
) -> list[Comparison]:
    """Each metric of both models; nothing where no query has a match."""
    if not len(people.counts):
        return []
    intervals = 100 * np.array(bootstrap_people(people, rule.bootstrap_samples, rule.confidence, draws))
    value, low, high = intervals.reshape(3, 3, len(METRICS)).round(6)  # champion, candidate, difference
    return [
        Comparison(
            data=data,
            direction=one.search.name,
            metric=metric,
            champion=float(value[0, n]),
            candidate=float(value[1, n]),
            difference=float(value[2, n]),
            low=float(low[2, n]),
            high=float(high[2, n]),
            queries=int(people.counts[:, 0].sum()),
            people=len(people.counts),
            query_camera=one.query_camera,
            gallery_camera=one.gallery_camera,
        )
        for n, metric in enumerate(METRICS)
    ]


def paired_trials(
    search: Search, labels: Labels, champion: Sequence[QueryMetrics], candidate: Sequence[QueryMetrics]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each trial the metrics float64 [n, 6] of the n queries that have a match, and their people [n].

    The columns are rank-1 and AP of the champion, of the candidate, and their differences, 0..1.
    """
    for trial, (old, new) in enumerate(zip(champion, candidate, strict=True)):
        valid = old.valid  # whether there is a match: the same for both models
        before, after = _figures(old)[valid], _figures(new)[valid]
        people = labels.people[search.queries_of(trial)[valid]]
        yield np.concatenate([before, after, after - before], axis=1), people


def _figures(queries: QueryMetrics) -> np.ndarray:
    """Rank-1 and AP of each query [q, 2], in the order of METRICS."""
    return np.stack([queries.first_rank == 1, queries.ap], axis=1)


def omitted_pairs(experiment: Experiment, rule: GateParams) -> int:
    """The number of pairs of cameras with `min_people` or more that `compare` omits beyond PAIRS."""
    return sum(
        pair_searches(search, experiment.labels, rule.min_people).left_out for search in experiment.searches
    )


def _whole_searches(experiment: Experiment) -> Iterator[list[Compared]]:
    """Each search of the experiment, over all cameras."""
    for number, search in enumerate(experiment.searches):
        yield [Compared(number, search, None, None)]


def _searches(experiment: Experiment, min_people: int) -> Iterator[list[Compared]]:
    """For each search of the experiment: itself, then those between two cameras.

    The bootstrap draws depend on the number, which is the same however many pairs have enough people.
    """
    labels = experiment.labels
    names = dict(zip(labels.cameras.tolist(), experiment.index["camera"], strict=True))
    first = len(experiment.searches)
    for (whole,) in _whole_searches(experiment):
        pairs = pair_searches(whole.search, labels, min_people)
        yield [
            whole,
            *(
                Compared(first + place, pair, names[query_camera], names[gallery_camera])
                for query_camera, gallery_camera, place, pair in pairs.searches
            ),
        ]
        first += pairs.every
