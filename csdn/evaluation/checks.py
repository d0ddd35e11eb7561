"""What is refused, as broadcasting or a comparison that is never true would give figures all the same."""

from __future__ import annotations

import numpy as np

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
