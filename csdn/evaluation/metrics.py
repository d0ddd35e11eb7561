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
figures on every machine. The distances may be a whole matrix (`rank_metrics`), or come block by block
(csdn.evaluation.ranking).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from csdn.data.labels import canonical_labels
from csdn.evaluation.ranking import RULES, QueryMetrics, RankedGallery, check_finite

RANKS = 20
# Queries of a whole matrix that are ranked at a time: a few matrices of [QUERIES_AT_A_TIME, gallery].
QUERIES_AT_A_TIME = 256

Array = np.ndarray | torch.Tensor


class RankMetrics(NamedTuple):
    """Means over the valid queries, as fractions 0..1; NaN where no query is valid."""

    cmc: np.ndarray  # float64 [20]; cmc[k - 1] is rank-k. A ranking shorter than 20 keeps its last value
    mean_ap: float
    mean_inp: float
    valid_queries: int


def rank_metrics(
    distances: Array,
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
    distances: Array,
    query_ids: Array,
    gallery_ids: Array,
    query_cameras: Array,
    gallery_cameras: Array,
    rule: str,
) -> QueryMetrics:
    """Metrics of each query; arguments and errors as for `rank_metrics`."""
    checked = _checked(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, rule)
    gallery = RankedGallery(checked.gallery_ids, checked.gallery_cameras, rule)
    found = QueryMetrics.of(len(checked.query_ids))
    for part, rows in _row_blocks(checked):
        found.put(part, gallery.metrics(rows, checked.query_ids[part], checked.query_cameras[part]))
    return found


def top_ranked(
    distances: Array,
    query_ids: Array,
    gallery_ids: Array,
    query_cameras: Array,
    gallery_cameras: Array,
    rule: str,
    count: int = 10,
) -> np.ndarray:
    """Gallery positions at the head of each query's ranking, int64 [q, min(count, g)]; -1 past its end."""
    checked = _checked(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, rule)
    gallery = RankedGallery(checked.gallery_ids, checked.gallery_cameras, rule)
    parts = [np.zeros((0, min(count, len(gallery_ids))), np.int64)]
    for part, rows in _row_blocks(checked):
        parts.append(gallery.top(rows, checked.query_ids[part], checked.query_cameras[part], count))
    return np.concatenate(parts)


def _row_blocks(checked: _Checked) -> Iterator[tuple[slice, np.ndarray]]:
    """The queries by blocks, with a copy of their distances [n, g]."""
    for start in range(0, len(checked.query_ids), QUERIES_AT_A_TIME):
        part = slice(start, start + QUERIES_AT_A_TIME)
        rows = as_numpy(checked.distances[part])
        check_finite(rows)
        yield part, rows.astype(np.result_type(rows, np.float32))


# Checks of the arguments. Broadcasting, or a comparison that is never true, would give plausible figures.


class _Checked(NamedTuple):
    """The arguments of `rank_metrics`; labels are whole numbers."""

    distances: Array
    query_ids: np.ndarray
    gallery_ids: np.ndarray
    query_cameras: np.ndarray
    gallery_cameras: np.ndarray


def _checked(
    distances: Array,
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
    if not isinstance(distances, torch.Tensor):
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
