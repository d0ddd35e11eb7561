"""Distances of queries and gallery images, by blocks of queries: of features, or at random for chance.

Several searches share one pass: the distances of a query to an image are computed once, however many
galleries (trials, single cameras) the image is in. A block bounds the memory, whatever the size of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from csdn.evaluation.baselines import chance_draws
from csdn.evaluation.ranking import check_finite

# Distances of a block: [queries of the block, images of all galleries]. At least LEAST_QUERIES of them, so a
# matrix product has enough rows: 64 x a million images are 256 MB.
BLOCK = {"cpu": 2**22, "cuda": 2**26}
LEAST_QUERIES = 64
# Gallery images whose features are gathered at a time.
GALLERY_AT_A_TIME = 4096


class Trial(NamedTuple):
    """Queries and gallery of one trial of a search, as rows of the index."""

    queries: np.ndarray  # int64 [q]
    gallery: np.ndarray  # int64 [g]
    number: int  # from 0, within its search


class Rows(NamedTuple):
    """Distances of some queries of a trial to its gallery."""

    trial: int  # its place in the list of trials
    queries: np.ndarray | slice  # positions of the n queries in the trial's
    read: Callable[[], np.ndarray]  # the distances [n, g], a copy; may be called from any thread, once


class Distances(Protocol):
    def blocks(self, trials: Sequence[Trial], order: np.ndarray) -> Iterator[list[Rows]]:
        """The distances of all trials, a list for each block.

        order: a label for each row of the index [n]; queries come by rising label, so that trials with
        queries of one camera are met in few blocks.
        """


class FeatureDistances:
    """Negated dot products of features [n, D] of the index's rows: smaller is more alike.

    On a GPU they are computed in full float32, whatever the precision of the networks is.
    """

    def __init__(self, features: np.ndarray, device: torch.device | str = "cpu") -> None:
        exact = np.float64 if features.dtype.itemsize > 4 else np.float32
        self.features = torch.from_numpy(np.ascontiguousarray(features, exact))
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.features.nbytes < torch.cuda.mem_get_info(self.device)[0] / 2:
            self.features = self.features.to(self.device)  # else each block moves what it needs

    def blocks(self, trials: Sequence[Trial], order: np.ndarray) -> Iterator[list[Rows]]:
        """See `Distances`; raises ValueError where a distance is not a finite number."""
        gallery = np.unique(np.concatenate([one.gallery for one in trials]))
        queries = np.unique(np.concatenate([one.queries for one in trials]))
        queries = queries[np.argsort(order[queries], kind="stable")]
        columns = [np.searchsorted(gallery, one.gallery) for one in trials]
        places = np.empty(len(order), np.int64)
        places[queries] = np.arange(len(queries))
        distinct = {id(one.queries): one.queries for one in trials}  # most trials share theirs
        by_place = {key: np.argsort(places[rows], kind="stable") for key, rows in distinct.items()}
        sorted_places = {key: places[rows[by_place[key]]] for key, rows in distinct.items()}
        step = max(LEAST_QUERIES, BLOCK[self.device.type] // max(1, len(gallery)))
        for start in range(0, len(queries), step):
            block = self._block(queries[start : start + step], gallery)
            found = []
            for number, one in enumerate(trials):
                where = sorted_places[id(one.queries)]
                first, last = np.searchsorted(where, [start, start + step])
                if first < last:
                    read = _reader(block, where[first:last] - start, columns[number])
                    found.append(Rows(number, by_place[id(one.queries)][first:last], read))
            yield found

    def _block(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """Distances [q, g] on the CPU."""
        negated = -self._rows(queries)
        block = torch.empty((len(queries), len(gallery)), dtype=negated.dtype, device=self.device)
        with exact_products():
            for start in range(0, len(gallery), GALLERY_AT_A_TIME):
                some = slice(start, start + GALLERY_AT_A_TIME)
                torch.mm(negated, self._rows(gallery[some]).T, out=block[:, some])
        distances = block.cpu().numpy()
        check_finite(distances)
        return distances

    def _rows(self, rows: np.ndarray) -> Tensor:
        return self.features[torch.from_numpy(rows).to(self.features.device)].to(self.device)


def _reader(block: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Callable[[], np.ndarray]:
    """Reads some rows and columns, both as numbers in the block; the rows are distinct and rise."""

    def read() -> np.ndarray:
        part = block[rows[0] : rows[-1] + 1]
        return np.take(part if len(part) == len(rows) else part[rows - rows[0]], columns, axis=1)

    return read


@contextmanager
def exact_products() -> Iterator[None]:
    """Matrix products of float32 on GPUs without TF32: it would change ranks."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


class RandomDistances:
    """Random distances, float64, new ones for each trial; `search` is the number of the search."""

    def __init__(self, seed: int, search: int) -> None:
        self.seed, self.search = seed, search

    def blocks(self, trials: Sequence[Trial], order: np.ndarray) -> Iterator[list[Rows]]:
        """See `Distances`; queries come in the order of their trial, each trial with draws of its own."""
        draws = [chance_draws(self.seed, self.search, one.number) for one in trials]
        largest = max(len(one.gallery) for one in trials)
        step = max(LEAST_QUERIES, BLOCK["cpu"] // max(1, largest))
        for start in range(0, max(len(one.queries) for one in trials), step):
            yield [
                Rows(number, slice(start, start + rows), _drawer(draws[number], rows, len(one.gallery)))
                for number, one in enumerate(trials)
                if (rows := min(step, len(one.queries) - start)) > 0
            ]


def _drawer(draws: np.random.Generator, rows: int, images: int) -> Callable[[], np.ndarray]:
    return lambda: draws.random((rows, images))
