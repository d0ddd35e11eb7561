"""CMC (rank-k), mAP and mINP of a retrieval experiment, under the camera rule of its protocol.

The gallery is ranked by rising distance to a query; a gallery image of the query's person is a match. Before
ranking, the protocol's rule removes gallery images that would make the search too easy:

    rule      gallery images removed for a query                 CMC counts
    sysu      those of camera 2, if the query is of camera 3     people, each by their first image
    regdb     none                                               images
    llcm      the query's person at the query's camera           people, each by their first image
    cameras   the query's person at the query's camera           images

For a query whose M matches have ranks R_1 < ... < R_M among the remaining images:

    AP      = (1/M) sum_k k / R_k       average precision, not interpolated
    INP     = M / R_M                   inverse negative penalty (Ye et al., arXiv 2001.04193)
    CMC(k)  = 1 if the first match has rank k or better, else 0

mAP, mINP and rank-k are the means over the queries. AP and INP always use ranks of images. Where the
CMC counts people, the first match has rank 1 + the number of other people who have an image before it: SYSU's
evaluation code keeps one image of each person in the ranking.

A query without a match among the remaining images is invalid: it is left out of all means and counted. Images
at equal distance rank in the order of the gallery (as in a stable sort), so the same input gives the same
figures on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from csdn.data.labels import canonical_labels

RANKS = 20
# Queries ranked at a time: bounds the memory to a few matrices of [QUERIES_AT_A_TIME, gallery].
QUERIES_AT_A_TIME = 256

Array = np.ndarray | torch.Tensor


class NegatedDotProducts:
    """Distances [q, g] of features compared by their dot product; rows are computed when they are read."""

    def __init__(self, query_features: np.ndarray, gallery_features: np.ndarray) -> None:
        self.query_features, self.gallery_features = query_features, gallery_features
        self.shape = (len(query_features), len(gallery_features))

    def __getitem__(self, rows: slice) -> np.ndarray:
        return -(self.query_features[rows] @ self.gallery_features.T)


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


class RankMetrics(NamedTuple):
    """Means over the valid queries, as fractions 0..1; NaN where no query is valid."""

    cmc: np.ndarray  # float64 [20]; cmc[k - 1] is rank-k. A ranking shorter than 20 keeps its last value
    mean_ap: float
    mean_inp: float
    valid_queries: int


def rank_metrics(
    distances: Array | NegatedDotProducts,
    query_ids: Array,
    gallery_ids: Array,
    query_cameras: Array,
    gallery_cameras: Array,
    rule: str,
) -> RankMetrics:
    """CMC, mAP and mINP, as fractions 0..1, of a distance matrix [q, g] (smaller = more alike).

    NumPy arrays, tensors or lists; ids [q], [g] and cameras [q], [g] are numbers or names, compared as
    csdn.data.labels says; for rule "sysu" the cameras are the benchmark's numbers. Raises ValueError for an
    unknown rule, shapes that do not fit, an empty gallery, distances that are not finite, and ids or cameras
    that are missing or cannot be compared.

    >>> rank_metrics(np.array([[0.1, 0.3, 0.2]]), np.array([7]), np.array([5, 7, 7]),
    ...              np.array([0]), np.array([1, 1, 2]), "cameras").mean_ap
    0.5833333333333333
    """
    if not len(gallery_ids):
        raise ValueError("the gallery has no images: nothing can be found in it")
    return summary(query_metrics(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, rule))


def summary(queries: QueryMetrics) -> RankMetrics:
    """The means of per-query metrics over the valid queries."""
    valid = queries.valid
    count = int(valid.sum())
    if count == 0:
        return RankMetrics(np.full(RANKS, np.nan), float("nan"), float("nan"), 0)
    found_at = np.bincount(np.minimum(queries.first_rank[valid], RANKS + 1), minlength=RANKS + 2)
    cmc = np.cumsum(found_at[1 : RANKS + 1]) / count
    return RankMetrics(cmc, float(queries.ap[valid].mean()), float(queries.inp[valid].mean()), count)


def query_metrics(
    distances: Array | NegatedDotProducts,
    query_ids: Array,
    gallery_ids: Array,
    query_cameras: Array,
    gallery_cameras: Array,
    rule: str,
) -> QueryMetrics:
    """Metrics of each query; arguments and errors as for `rank_metrics`."""
    checked = _checked(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, rule)
    people = GalleryPeople(checked.gallery_ids) if RULES[rule].cmc_of_people else None
    parts = [_chunk_metrics(chunk, people) for chunk in _chunks(checked, rule)]
    empty = QueryMetrics(np.zeros(0, np.int64), np.zeros(0), np.zeros(0), np.zeros(0, np.int64))
    return QueryMetrics(*map(np.concatenate, zip(empty, *parts, strict=True)))


def top_ranked(
    distances: Array | NegatedDotProducts,
    query_ids: Array,
    gallery_ids: Array,
    query_cameras: Array,
    gallery_cameras: Array,
    rule: str,
    count: int = 10,
) -> np.ndarray:
    """Gallery positions at the head of each query's ranking, int64 [q, min(count, g)]; -1 past its end."""
    parts = [np.zeros((0, min(count, len(gallery_ids))), np.int64)]
    checked = _checked(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, rule)
    for rows, candidates, _ in _chunks(checked, rule):
        first = np.argsort(np.where(candidates, rows, np.inf), axis=1, kind="stable")[:, :count]
        parts.append(np.where(np.take_along_axis(candidates, first, axis=1), first, -1))
    return np.concatenate(parts)


# The computation, for a chunk of queries at a time.


class _Chunk(NamedTuple):
    """Some queries and the whole gallery."""

    rows: np.ndarray  # distances [n, g]
    candidates: np.ndarray  # bool [n, g], gallery images that the rule leaves
    same_person: np.ndarray  # bool [n, g]


def _chunks(checked: _Checked, rule: str) -> Iterator[_Chunk]:
    distances, query_ids, gallery_ids, query_cameras, gallery_cameras = checked
    excluded = RULES[rule].excluded
    for start in range(0, len(query_ids), QUERIES_AT_A_TIME):
        part = slice(start, start + QUERIES_AT_A_TIME)
        rows = as_numpy(distances[part])
        if not np.isfinite(rows).all():
            raise ValueError("distances must be finite; a feature with NaN or infinity has no rank")
        same_person = query_ids[part, None] == gallery_ids
        yield _Chunk(rows, ~excluded(query_cameras[part, None], gallery_cameras, same_person), same_person)


def _chunk_metrics(chunk: _Chunk, people: GalleryPeople | None) -> QueryMetrics:
    """Metrics of a chunk; `people` where the CMC counts people."""
    match = chunk.candidates & chunk.same_person
    valid = match.any(axis=1)
    count = len(match)
    first_rank, first_match = np.zeros(count, np.int64), np.full(count, -1)
    ap, inp = np.full((2, count), np.nan)
    if valid.any():
        values, ordered = break_ties(chunk.rows[valid], chunk.candidates[valid])
        found = match_ranks(values, ordered, match[valid])
        k = np.arange(1, found.rank.shape[1] + 1)
        is_match = k <= found.matches[:, None]
        ap[valid] = np.where(is_match, k / found.rank, 0).sum(axis=1) / found.matches
        inp[valid] = found.matches / found.rank[np.arange(len(values)), found.matches - 1]
        first_match[valid] = found.first_match
        first_rank[valid] = (
            1 + people.people_before(values, found.distance[:, 0]) if people else found.rank[:, 0]
        )
    return QueryMetrics(first_rank, ap, inp, first_match)


# Ranks are counted, not sorted: without ties, the rank of an image is 1 + the number of smaller distances.
# Sorting values is several times faster than an argsort, and only the few matches need a rank.


class MatchRanks(NamedTuple):
    """The matches of n queries, at least one and at most m for each; the best ranked first."""

    distance: np.ndarray  # [n, m], infinity after a query's matches
    rank: np.ndarray  # int64 [n, m], among images, 1 = the best; undefined after a query's matches
    matches: np.ndarray  # int64 [n], number of matches
    first_match: np.ndarray  # int64 [n], gallery position of the best of them


def break_ties(rows: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances [n, g] in which no two candidates of a row are equal, and each row's values sorted [n, g].

    Excluded images get infinity. In a row with equal distances, ranks replace distances: of two equal images
    the one that comes first in the gallery is the better, as in a stable sort.
    """
    values = np.where(candidates, rows, np.array(np.inf, np.result_type(rows, np.float32)))
    ordered = np.sort(values, axis=1)
    equal = ((ordered[:, 1:] == ordered[:, :-1]) & np.isfinite(ordered[:, 1:])).any(axis=1)
    if equal.any():
        order = np.argsort(values[equal], axis=1, kind="stable")
        ranks = np.empty_like(values[equal])
        np.put_along_axis(ranks, order, np.arange(rows.shape[1], dtype=ranks.dtype)[None], axis=1)
        values[equal] = np.where(candidates[equal], ranks, np.inf)
        ordered[equal] = np.sort(values[equal], axis=1)
    return values, ordered


def match_ranks(values: np.ndarray, ordered: np.ndarray, match: np.ndarray) -> MatchRanks:
    """Ranks of the matches, bool [n, g], at least one in each row; values, ordered: from `break_ties`."""
    matches = match.sum(axis=1)
    query, image = np.nonzero(match)
    column = np.arange(len(query)) - np.repeat(np.cumsum(matches) - matches, matches)
    shape = (len(values), int(matches.max()))
    distance, images = np.full(shape, np.inf, values.dtype), np.zeros(shape, np.int64)
    distance[query, column], images[query, column] = values[query, image], image
    best_first = np.argsort(distance, axis=1)
    distance = np.take_along_axis(distance, best_first, axis=1)
    rank = 1 + torch.searchsorted(torch.from_numpy(ordered), torch.from_numpy(distance)).numpy()
    return MatchRanks(distance, rank, matches, images[np.arange(len(values)), best_first[:, 0]])


class GalleryPeople:
    """The gallery grouped by person, once for all queries: a CMC of people counts these groups."""

    def __init__(self, gallery_ids: np.ndarray) -> None:
        self.by_person = np.argsort(gallery_ids, kind="stable")
        _, self.starts = np.unique(gallery_ids[self.by_person], return_index=True)

    def people_before(self, values: np.ndarray, bound: np.ndarray) -> np.ndarray:
        """Number of people [n] with an image nearer than `bound` [n]; values [n, g] (excluded: inf)."""
        nearest = np.minimum.reduceat(values[:, self.by_person], self.starts, axis=1)
        return (nearest < bound[:, None]).sum(axis=1)


# Checks of the arguments. Broadcasting, or a comparison that is never true, would give plausible figures.


class _Checked(NamedTuple):
    """The arguments of `rank_metrics`; labels are whole numbers."""

    distances: Array | NegatedDotProducts
    query_ids: np.ndarray
    gallery_ids: np.ndarray
    query_cameras: np.ndarray
    gallery_cameras: np.ndarray


def _checked(
    distances: Array | NegatedDotProducts,
    query_ids: Array,
    gallery_ids: Array,
    query_cameras: Array,
    gallery_cameras: Array,
    rule: str,
) -> _Checked:
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; allowed: {', '.join(RULES)}")
    ids = [as_numpy(query_ids), as_numpy(gallery_ids)]
    cameras = [as_numpy(query_cameras), as_numpy(gallery_cameras)]
    if not isinstance(distances, NegatedDotProducts | torch.Tensor):
        distances = np.asarray(distances)
    _check_shapes(tuple(distances.shape), ids, cameras)
    _check_same_kind("ids", *ids)
    _check_same_kind("cameras", *cameras)
    if rule == "sysu" and any(map(_is_text, cameras)):
        raise ValueError("rule sysu needs the cameras' numbers; csdn.evaluation.rule_cameras gives them")
    return _Checked(distances, *_as_integers("ids", *ids), *_as_integers("cameras", *cameras))


def as_numpy(values: Array) -> np.ndarray:
    if not isinstance(values, torch.Tensor):
        found = np.asarray(values)
        return np.asarray(found.tolist()) if found.dtype == object else found  # a column of pandas
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _check_shapes(shape: tuple[int, ...], ids: list[np.ndarray], cameras: list[np.ndarray]) -> None:
    if any(column.ndim != 1 for column in ids + cameras):
        shapes = ", ".join(str(column.shape) for column in ids + cameras)
        raise ValueError(f"ids and cameras of queries and gallery are {shapes}; one dimension each is needed")
    queries, gallery = map(len, ids)
    if shape != (queries, gallery):
        raise ValueError(f"distances are {shape}; {queries} queries, {gallery} gallery images")
    if [len(column) for column in cameras] != [queries, gallery]:
        raise ValueError("each query and each gallery image needs one camera")


def _check_same_kind(what: str, queries: np.ndarray, gallery: np.ndarray) -> None:
    """Raise ValueError where numbers would be compared with names: they are never equal."""
    if len(queries) and len(gallery) and _is_text(queries) != _is_text(gallery):
        raise ValueError(f"{what} of the queries are {queries.dtype}, of the gallery {gallery.dtype}")


def _as_integers(what: str, queries: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both columns as whole numbers, equal where the labels are the same (csdn.data.labels).

    Raises ValueError for a missing value, and for a number that is not whole.
    """
    if all(column.dtype.kind in "iub" for column in (queries, gallery)):
        return queries, gallery
    labels = canonical_labels(queries, f"{what} of the queries")
    labels += canonical_labels(gallery, f"{what} of the gallery")
    if _is_text(queries) or _is_text(gallery):
        numbers = np.unique(labels, return_inverse=True)[1]
    else:
        numbers = np.array([int(label) for label in labels], np.int64)
    return numbers[: len(queries)], numbers[len(queries) :]


def _is_text(values: np.ndarray) -> bool:
    return values.dtype.kind in "USO"
