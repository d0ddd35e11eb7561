"""Places in a ranking without ranking: where no two distances are equal, an image's place is a count.

Sorting values is several times faster than finding the order they came from, and only the few right images
need a place.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch


class Places(NamedTuple):
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


def count_places(values: np.ndarray, ordered: np.ndarray, right: np.ndarray) -> Places:
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
    return Places(distance, position, matches, images[np.arange(len(values)), best_first[:, 0]])


class People:
    """Counts people instead of images: the gallery grouped by person once, for all queries."""

    def __init__(self, gallery_ids: np.ndarray) -> None:
        self.by_person = np.argsort(gallery_ids, kind="stable")
        _, self.starts = np.unique(gallery_ids[self.by_person], return_index=True)

    def ahead(self, values: np.ndarray, bound: np.ndarray) -> np.ndarray:
        """How many people have an image nearer than `bound` [n]; values [n, g], unseen ones infinity."""
        nearest = np.minimum.reduceat(values[:, self.by_person], self.starts, axis=1)
        return (nearest < bound[:, None]).sum(axis=1)
