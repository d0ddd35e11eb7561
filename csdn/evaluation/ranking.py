"""Ranks of some queries' matches in one gallery, under a rule; csdn.evaluation.metrics defines the figures.

Ranks are counted: without ties, the rank of an image is 1 + the number of smaller distances. Only the few
matches need a rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Up to this many matches of a query, counting smaller distances is faster than sorting them all.
COUNTED_MATCHES = 10


class Rule(NamedTuple):
    """`excluded(query cameras [q, 1], gallery cameras [g], same person [q, g])`: bool, what is removed."""

    excluded: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    cmc_of_people: bool


def _camera_2_from_camera_3(query: np.ndarray, gallery: np.ndarray, same_person: np.ndarray) -> np.ndarray:
    return (query == 3) & (gallery == 2)


def _nothing(query: np.ndarray, gallery: np.ndarray, same_person: np.ndarray) -> np.ndarray:
    return np.zeros_like(same_person)


def _same_person_and_camera(query: np.ndarray, gallery: np.ndarray, same_person: np.ndarray) -> np.ndarray:
    return same_person & (query == gallery)


RULES = {
    "sysu": Rule(_camera_2_from_camera_3, cmc_of_people=True),
    "regdb": Rule(_nothing, cmc_of_people=False),
    "llcm": Rule(_same_person_and_camera, cmc_of_people=True),
    "cameras": Rule(_same_person_and_camera, cmc_of_people=False),
}


class QueryMetrics(NamedTuple):
    """Per query, arrays [q]; an invalid query has rank 0, NaN and position -1."""

    first_rank: np.ndarray  # int64, rank of the first match, 1 = the best, counted as the rule's CMC counts
    ap: np.ndarray  # float64, average precision, 0..1
    inp: np.ndarray  # float64, inverse negative penalty, 0..1
    first_match: np.ndarray  # int64, gallery position of the first match

    @property
    def valid(self) -> np.ndarray:
        return self.first_rank > 0

    @classmethod
    def of(cls, queries: int) -> QueryMetrics:
        """Of this many queries, all invalid so far; `put` fills in."""
        ap, inp = np.full((2, queries), np.nan)
        return cls(np.zeros(queries, np.int64), ap, inp, np.full(queries, -1))

    def put(self, where: slice | np.ndarray, found: QueryMetrics) -> None:
        """Replace the metrics of the queries at some positions."""
        for own, part in zip(self, found, strict=True):
            own[where] = part


def check_finite(distances: np.ndarray) -> None:
    """Raise ValueError unless all are finite numbers."""
    if not np.isfinite(distances).all():
        raise ValueError("distances must be finite; a feature with NaN or infinity has no rank")


class RankedGallery:
    """The gallery of a search: ids and cameras, whole numbers [g], and the rule.

    `metrics` and `top` take distances [n, g] of n queries, floats, which they overwrite.
    """

    def __init__(self, ids: np.ndarray, cameras: np.ndarray, rule: str) -> None:
        self.ids, self.cameras, self.rule = ids, cameras, RULES[rule]
        self.people = GalleryPeople(ids) if self.rule.cmc_of_people else None

    def metrics(self, rows: np.ndarray, query_ids: np.ndarray, query_cameras: np.ndarray) -> QueryMetrics:
        """Metrics of n queries."""
        match = self._exclude(rows, query_ids, query_cameras)
        matches = np.count_nonzero(match, axis=1)
        valid = np.flatnonzero(matches)
        found = QueryMetrics.of(len(rows))
        if len(valid) < len(rows):
            rows, match, matches = rows[valid], match[valid], matches[valid]
        if len(valid):
            found.put(valid, self._valid_metrics(rows, match, matches))
        return found

    def top(
        self, rows: np.ndarray, query_ids: np.ndarray, query_cameras: np.ndarray, count: int
    ) -> np.ndarray:
        """Positions of the `count` nearest images, the best first, int64 [n, min(count, g)]; -1: none."""
        self._exclude(rows, query_ids, query_cameras)
        count = min(count, rows.shape[1])
        bound = np.partition(rows, count - 1, axis=1)[:, count - 1 : count]
        query, image = _positions((rows <= bound) & (rows < np.inf))
        order = np.lexsort((rows[query, image], query))  # stable: ties stay in the order of the gallery
        place = np.arange(len(query)) - np.searchsorted(query, query)
        found = np.full((len(rows), count), -1)
        shown = place < count
        found[query[shown], place[shown]] = image[order][shown]
        return found

    def _exclude(self, rows: np.ndarray, query_ids: np.ndarray, query_cameras: np.ndarray) -> np.ndarray:
        """Set the distances of images that the rule removes to infinity; returns the matches, bool [n, g]."""
        same_person = query_ids[:, None] == self.ids
        excluded = self.rule.excluded(query_cameras[:, None], self.cameras, same_person)
        rows[excluded] = np.inf
        return same_person & ~excluded

    def _valid_metrics(self, values: np.ndarray, match: np.ndarray, matches: np.ndarray) -> QueryMetrics:
        """Metrics of queries with at least one match; matches: their number [n]."""
        found = match_ranks(values, match, matches)
        k = np.arange(1, found.rank.shape[1] + 1)
        # Summed one after another: the last digit of `sum` depends on the largest number of matches.
        precision = np.cumsum(np.where(k <= matches[:, None], k / found.rank, 0), axis=1)[:, -1]
        first_rank = found.rank[:, 0]
        if self.people:
            first_rank = 1 + self.people.people_before(values, found.distance[:, 0])
        return QueryMetrics(
            first_rank,
            ap=precision / matches,
            inp=matches / found.rank[np.arange(len(values)), matches - 1],
            first_match=found.first_match,
        )


class MatchRanks(NamedTuple):
    """The matches of n queries, at least one and at most m for each; the best ranked first."""

    distance: np.ndarray  # [n, m], infinity after a query's matches
    rank: np.ndarray  # int64 [n, m], among images, 1 = the best; undefined after a query's matches
    first_match: np.ndarray  # int64 [n], gallery position of the best of them


def match_ranks(values: np.ndarray, match: np.ndarray, matches: np.ndarray) -> MatchRanks:
    """Ranks of the matches, bool [n, g], at least one in each row; their number [n]; excluded images: inf.

    Where an image is as near as a match, or a query has many, ranks replace the distances of the row in
    `values`: of two equal images the one that comes first in the gallery is the better, as in a stable sort.
    """
    query, image = _positions(match)
    column = np.arange(len(query)) - np.repeat(np.cumsum(matches) - matches, matches)
    shape = (len(values), int(matches.max()))
    images, distance = np.zeros(shape, np.int64), np.full(shape, np.inf, values.dtype)
    images[query, column], distance[query, column] = image, values[query, image]
    smaller, by_rank = _smaller_and_tied(values, distance)
    if by_rank.any():
        values[by_rank] = _ranks(values[by_rank])
        distance[query, column] = values[query, image]
        smaller[by_rank] = np.where(np.isfinite(distance[by_rank]), distance[by_rank], 0)
    best_first = np.argsort(distance, axis=1)
    distance, smaller, images = (
        np.take_along_axis(of, best_first, axis=1) for of in (distance, smaller, images)
    )
    return MatchRanks(distance, 1 + smaller, images[:, 0])


def _smaller_and_tied(values: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many values [n, g] are smaller than each distance of their row, int64 [n, m]; and the rows [n] of
    which that is no rank: those with ties, where a value equals one of the distances twice, or all rows.

    distance: values of the row, infinity after those.
    """
    smaller, tied = np.zeros(distance.shape, np.int64), np.zeros(len(values), bool)
    if distance.shape[1] > COUNTED_MATCHES:
        return smaller, ~tied
    for column, bound in enumerate(np.where(np.isfinite(distance), distance, np.nan).T[:, :, None]):
        smaller[:, column] = (values < bound).view(np.uint8).sum(axis=1, dtype=np.uint32)
        equal = values == bound
        if np.count_nonzero(equal) != np.count_nonzero(np.isfinite(bound)):  # each equals itself once
            tied |= np.count_nonzero(equal, axis=1) > 1
    return smaller, tied


def _ranks(values: np.ndarray) -> np.ndarray:
    """The places of the values in a stable sort of their row, as numbers of the same type; inf stays.

    Float32 has exact places for 16 million images.
    """
    order = np.argsort(values, axis=1, kind="stable")
    ranks = np.empty_like(values)
    np.put_along_axis(ranks, order, np.arange(values.shape[1], dtype=values.dtype)[None], axis=1)
    return np.where(np.isfinite(values), ranks, np.inf).astype(values.dtype)


def _positions(flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of what is true, row by row: np.nonzero, which is slow in two dimensions."""
    return np.divmod(np.flatnonzero(flags), flags.shape[1])


class GalleryPeople:
    """The gallery grouped by person, once for all queries: a CMC of people counts these groups."""

    def __init__(self, gallery_ids: np.ndarray) -> None:
        self.by_person = np.argsort(gallery_ids, kind="stable")
        _, self.starts = np.unique(gallery_ids[self.by_person], return_index=True)

    def people_before(self, values: np.ndarray, bound: np.ndarray) -> np.ndarray:
        """Number of people [n] with an image nearer than `bound` [n]; values [n, g] (excluded: inf)."""
        nearest = np.minimum.reduceat(np.take(values, self.by_person, axis=1), self.starts, axis=1)
        return np.count_nonzero(nearest < bound[:, None], axis=1)
