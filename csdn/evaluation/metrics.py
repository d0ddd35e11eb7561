"""What is refused, as broadcasting or a comparison that is never true would give figures all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from csdn.data.labels import canonical_labels


def check_shapes(
    shape: tuple[int, ...],
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
) -> None:
    """Raise ValueError unless distances of this shape are of each query and each gallery image."""
    columns = (query_ids, gallery_ids, query_cameras, gallery_cameras)
    if any(column.ndim != 1 for column in columns):
        shapes = ", ".join(str(column.shape) for column in columns)
        raise ValueError(f"ids and cameras of queries and gallery are {shapes}; one dimension each is needed")
    expected = (len(query_ids), len(gallery_ids))
    if shape != expected:
        raise ValueError(f"distances are {shape}; {expected[0]} queries, {expected[1]} gallery images")
    if len(query_cameras) != expected[0] or len(gallery_cameras) != expected[1]:
        raise ValueError("each query and each gallery image needs one camera")


def check_names(
    rule: str,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
) -> None:
    """Raise ValueError where numbers would be compared with names: nobody would be found, nothing hidden."""
    for what, queries, gallery in (
        ("ids", query_ids, gallery_ids),
        ("cameras", query_cameras, gallery_cameras),
    ):
        if len(queries) and len(gallery) and _is_text(queries) != _is_text(gallery):
            raise ValueError(f"{what} of the queries are {queries.dtype}, of the gallery {gallery.dtype}")
    if rule == "sysu" and (_is_text(query_cameras) or _is_text(gallery_cameras)):
        raise ValueError("rule sysu needs the cameras' numbers; csdn.evaluation.rule_cameras gives them")


def comparable(what: str, queries: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


# Places in a ranking without ranking: where no two distances are equal, an image's place is a count.
#
# Sorting values is several times faster than finding the order they came from, and only the few right images
# need a place.


class MatchRanks(NamedTuple):
    """Where n queries find their right images, at least one each and at most m; the best ranked first."""

    distance: np.ndarray  # [n, m], infinity behind a query's matches
    position: np.ndarray  # int64 [n, m], 1 = the best; behind a query's matches it means nothing
    matches: np.ndarray  # int64 [n], how many right images
    first_right: np.ndarray  # int64 [n], gallery position of the best of them


def distinct(rows: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances [n, g] in which no two seen ones of a row are equal, and each row's values in order [n, g].

    Unseen ones are infinity. Rows that have equal distances get their ranks instead: of two equal images the
    one that stands first in the gallery is the better, as in a stable sort.
    """
    values = np.where(seen, rows, np.array(np.inf, np.result_type(rows, np.float32)))
    ordered = np.sort(values, axis=1)
    equal = ((ordered[:, 1:] == ordered[:, :-1]) & np.isfinite(ordered[:, 1:])).any(axis=1)
    if equal.any():
        order = np.argsort(values[equal], axis=1, kind="stable")
        ranks = np.empty_like(values[equal])
        np.put_along_axis(ranks, order, np.arange(rows.shape[1], dtype=ranks.dtype)[None], axis=1)
        values[equal] = np.where(seen[equal], ranks, np.inf)
        ordered[equal] = np.sort(values[equal], axis=1)
    return values, ordered


def match_ranks(values: np.ndarray, ordered: np.ndarray, right: np.ndarray) -> MatchRanks:
    """Places of the right images [n, g], each row with one at least; values, ordered: from `distinct`."""
    matches = right.sum(axis=1)
    query, image = np.nonzero(right)
    column = np.arange(len(query)) - np.repeat(np.cumsum(matches) - matches, matches)
    shape = (len(values), int(matches.max()))
    distance, images = np.full(shape, np.inf, values.dtype), np.zeros(shape, np.int64)
    distance[query, column], images[query, column] = values[query, image], image
    best_first = np.argsort(distance, axis=1)
    distance = np.take_along_axis(distance, best_first, axis=1)
    position = 1 + torch.searchsorted(torch.from_numpy(ordered), torch.from_numpy(distance)).numpy()
    return MatchRanks(distance, position, matches, images[np.arange(len(values)), best_first[:, 0]])


class People:
    """Counts people instead of images: the gallery grouped by person once, for all queries."""

    def __init__(self, gallery_ids: np.ndarray) -> None:
        self.by_person = np.argsort(gallery_ids, kind="stable")
        _, self.starts = np.unique(gallery_ids[self.by_person], return_index=True)

    def ahead(self, values: np.ndarray, bound: np.ndarray) -> np.ndarray:
        """How many people have an image nearer than `bound` [n]; values [n, g], unseen ones infinity."""
        nearest = np.minimum.reduceat(values[:, self.by_person], self.starts, axis=1)
        return (nearest < bound[:, None]).sum(axis=1)


# CMC, mAP and mINP of a retrieval experiment, under the rule of its protocol.
#
# A query looks for images of its own person in a gallery ranked by rising distance. The rule says which
# gallery images the query may not see, and whether the CMC counts images or people:
#
#     rule      a query does not see                       CMC counts
#     sysu      gallery camera 2, if its own camera is 3   people: the ranking of each one's first image
#     regdb     (sees everything)                          images
#     llcm      images of its own person and camera        people
#     cameras   images of its own person and camera        images
#
# mAP and mINP are always over the whole ranking that the query sees. A query that sees no image of its
# person has no figure: it is left out and counted. Equal distances rank in the order of the gallery (a stable
# sort), so the same input gives the same figures on every machine.


RANKS = 20
# Queries ranked at a time: bounds the memory to a few matrices of [QUERIES_AT_A_TIME, gallery].
QUERIES_AT_A_TIME = 256

Array = np.ndarray | torch.Tensor


class NegatedDotProducts:
    """Distances [q, g] of features compared by their dot product, made only for the rows asked for."""

    def __init__(self, query_features: np.ndarray, gallery_features: np.ndarray) -> None:
        self.query_features, self.gallery_features = query_features, gallery_features
        self.shape = (len(query_features), len(gallery_features))

    def __getitem__(self, rows: slice) -> np.ndarray:
        return -(self.query_features[rows] @ self.gallery_features.T)


class Rule(NamedTuple):
    """`excluded(query cameras [q, 1], gallery cameras [g], same person [q, g])`: what a query may not see."""

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
    """Per query, arrays [q]; a query without a valid match has rank 0, NaN and position -1."""

    first_rank: np.ndarray  # int64, 1 = the best: position of the first right image, as the rule's CMC counts
    ap: np.ndarray  # float64, average precision, 0..1
    inp: np.ndarray  # float64, inverse negative penalty: right images / position of the last of them, 0..1
    first_right: np.ndarray  # int64, gallery position of the right image that is ranked best

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
    unknown rule, shapes that do not fit, no gallery images, distances that are not finite, and ids or cameras
    that are missing or cannot be compared.

    >>> rank_metrics(np.array([[0.1, 0.3, 0.2]]), np.array([7]), np.array([5, 7, 7]),
    ...              np.array([0]), np.array([1, 1, 2]), "cameras").mean_ap
    0.5833333333333333
    """
    if not len(gallery_ids):
        raise ValueError("the gallery has no images: nothing can be found in it")
    return summary(query_metrics(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, rule))


def summary(queries: QueryMetrics) -> RankMetrics:
    """The means of per-query figures over the valid queries."""
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
    """Figures of each query; arguments and errors as for `rank_metrics`."""
    columns = _columns(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, rule)
    people = People(columns.gallery_ids) if RULES[rule].cmc_of_people else None
    parts = [_chunk_metrics(chunk, people) for chunk in _chunks(columns, rule)]
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
    """Gallery positions each query sees first, int64 [q, min(count, g)]; -1 behind a short ranking's end."""
    parts = [np.zeros((0, min(count, len(gallery_ids))), np.int64)]
    columns = _columns(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, rule)
    for rows, seen, _ in _chunks(columns, rule):
        first = np.argsort(np.where(seen, rows, np.inf), axis=1, kind="stable")[:, :count]
        parts.append(np.where(np.take_along_axis(seen, first, axis=1), first, -1))
    return np.concatenate(parts)


def as_numpy(values: Array) -> np.ndarray:
    if not isinstance(values, torch.Tensor):
        found = np.asarray(values)
        return np.asarray(found.tolist()) if found.dtype == object else found  # a column of pandas
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


class _Columns(NamedTuple):
    """The arguments of `rank_metrics`, checked, the labels as whole numbers."""

    distances: Array | NegatedDotProducts
    query_ids: np.ndarray
    gallery_ids: np.ndarray
    query_cameras: np.ndarray
    gallery_cameras: np.ndarray


def _columns(
    distances: Array | NegatedDotProducts,
    query_ids: Array,
    gallery_ids: Array,
    query_cameras: Array,
    gallery_cameras: Array,
    rule: str,
) -> _Columns:
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; allowed: {', '.join(RULES)}")
    columns = tuple(map(as_numpy, (query_ids, gallery_ids, query_cameras, gallery_cameras)))
    if not isinstance(distances, NegatedDotProducts | torch.Tensor):
        distances = np.asarray(distances)
    check_shapes(tuple(distances.shape), *columns)
    check_names(rule, *columns)
    return _Columns(distances, *comparable("ids", *columns[:2]), *comparable("cameras", *columns[2:]))


class _Chunk(NamedTuple):
    """Some queries before the whole gallery."""

    rows: np.ndarray  # distances [n, g]
    seen: np.ndarray  # bool [n, g], what the rule lets them see
    same_person: np.ndarray  # bool [n, g]


def _chunks(columns: _Columns, rule: str) -> Iterator[_Chunk]:
    distances, query_ids, gallery_ids, query_cameras, gallery_cameras = columns
    excluded = RULES[rule].excluded
    for start in range(0, len(query_ids), QUERIES_AT_A_TIME):
        part = slice(start, start + QUERIES_AT_A_TIME)
        rows = as_numpy(distances[part])
        if not np.isfinite(rows).all():
            raise ValueError("distances must be finite; a feature with NaN or infinity has no rank")
        same_person = query_ids[part, None] == gallery_ids
        yield _Chunk(rows, ~excluded(query_cameras[part, None], gallery_cameras, same_person), same_person)


def _chunk_metrics(chunk: _Chunk, people: People | None) -> QueryMetrics:
    """Figures of a chunk; `people` where the CMC counts people."""
    right = chunk.seen & chunk.same_person
    valid = right.any(axis=1)
    count = len(right)
    first, first_right = np.zeros(count, np.int64), np.full(count, -1)
    ap, inp = np.full((2, count), np.nan)
    if valid.any():
        values, ordered = distinct(chunk.rows[valid], chunk.seen[valid])
        places = match_ranks(values, ordered, right[valid])
        found = np.arange(1, places.position.shape[1] + 1)
        counted = found <= places.matches[:, None]
        ap[valid] = np.where(counted, found / places.position, 0).sum(axis=1) / places.matches
        inp[valid] = places.matches / places.position[np.arange(len(values)), places.matches - 1]
        first_right[valid] = places.first_right
        first[valid] = 1 + people.ahead(values, places.distance[:, 0]) if people else places.position[:, 0]
    return QueryMetrics(first, ap, inp, first_right)
