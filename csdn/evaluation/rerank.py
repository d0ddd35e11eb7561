"""k-reciprocal re-ranking (Zhong et al., CVPR 2017, arXiv 1701.08398) with sparse encodings, by blocks.

Two images that show one person tend to be among each other's nearest neighbours, and to have neighbours in
common. With X the queries and the gallery together, and k1 = 20, k2 = 6, weight = 0.3:

    N(i, k)   image i and the k images of X nearest to it
    R(i, k)   = {j in N(i, k): i in N(j, k)}                              k-reciprocal neighbours
    R*(i)     = R(i, k1) and every R(j, k1/2), j in R(i, k1), that has at least 2/3 of its images in R(i, k1)
    V(i, j)   = exp(-d(i, j)) for j in R*(i), else 0                      encoding of image i
    V'(i)     = mean of V(j) over i and the k2 - 1 images nearest to it   local query expansion
    J(i, j)   = 1 - sum min(V'(i), V'(j)) / sum max(V'(i), V'(j))         Jaccard distance
    d*(i, j)  = (1 - weight) J(i, j) + weight d(i, j)

d(i, j) is the squared Euclidean distance (2 - 2 cos for features of unit length) divided by the largest one
of image i, so that both terms of d* lie in 0..1. The paper ranks one query and the gallery; that the other
queries take part, this scale, and that an image is its own neighbour are as in the authors' code, and k1/2 is
rounded as there (half to even). Their code differs from the paper's formulas in two points, in which this
module follows the paper: it asks for more than 2/3, and it divides each V(i) by its sum.

Of images at equal distance the first is the nearer, queries before the gallery; an image is nearest to
itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from csdn.evaluation.distances import Rows, Trial, exact_products
from csdn.evaluation.ranking import check_finite

NUMBERS = 2**24  # at a time, of a block of distances or of gathered features: 64 MiB
LEAST_ROWS = 64  # of a block, so that a matrix product has enough of them


def rerank(
    query_features: np.ndarray, gallery_features: np.ndarray, k1: int = 20, k2: int = 6, weight: float = 0.3
) -> np.ndarray:
    """Re-ranked distances float32 [q, g] of features [q, D] and [g, D], floats of any width or memory maps.

    The distances of a query depend on the other queries. Work grows with (q + g)^2 D, also for one query;
    memory: 4 (q + g) D bytes of features, 4 q g of the result, and some KiB an image (docs/benchmarks.md).
    Raises ValueError as `ReRanking` does.
    """
    ranking = ReRanking(query_features, gallery_features, k1, k2, weight)
    found = np.empty((len(query_features), len(gallery_features)), np.float32)
    for start, stop in ranking.blocks():
        found[start:stop] = ranking.distances(start, stop)
    return found


class ReRanking:
    """The encodings of some queries and a gallery; `distances` reads the distances of a block of queries.

    Raises ValueError where a parameter is out of its range or a feature is not a finite number.
    """

    def __init__(
        self,
        queries: np.ndarray,
        gallery: np.ndarray,
        k1: int = 20,
        k2: int = 6,
        weight: float = 0.3,
        device: torch.device | str = "cpu",
    ) -> None:
        if k1 < 1 or k2 < 1 or not 0 <= weight <= 1:
            raise ValueError(f"k1 = {k1}, k2 = {k2}, weight = {weight}; expected 1 or more, and 0 to 1")
        self.queries, self.weight = len(queries), weight
        images = np.empty((len(queries) + len(gallery), queries.shape[1]), np.float32)
        images[: len(queries)], images[len(queries) :] = queries, gallery
        self.features = torch.from_numpy(images).to(device)
        self.squares = torch.einsum("nd,nd->n", self.features, self.features)
        check_finite(self.squares.cpu().numpy())
        nearest, self.scale = self._nearest(max(k1 + 1, k2))
        neighbours = expanded(reciprocal(nearest, k1), reciprocal(nearest, round(k1 / 2)))
        encodings = among_nearest(nearest, k2) @ self._encoded(neighbours) / min(k2, len(images))
        self.sums = encodings.sum(axis=1)
        self.of_queries, self.of_gallery = encodings[: len(queries)], encodings[len(queries) :].tocsc()

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First and last + 1 of the queries of each block."""
        step = _rows_of(len(self.features) - self.queries)
        for start in range(0, self.queries, step):
            yield start, min(start + step, self.queries)

    def distances(self, start: int, stop: int) -> np.ndarray:
        """d* of the queries start..stop to the gallery, float32 [stop - start, g]."""
        squared = self._squared(slice(start, stop), slice(self.queries, None))
        found = squared.div_(self.scale[start:stop, None]).cpu().numpy()
        for row, query in enumerate(range(start, stop)):
            common = self._common(query)
            jaccard = 1 - common / (self.sums[query] + self.sums[self.queries :] - common)
            found[row] = (1 - self.weight) * jaccard + self.weight * found[row]
        return found

    def _common(self, query: int) -> np.ndarray:
        """sum min(V'(query), V'(j)) for all gallery images j, float64 [g].

        Only images of the gallery that have an image in common with the query are visited: column j of
        `of_gallery` lists those with j.
        """
        own = slice(*self.of_queries.indptr[query : query + 2])
        columns, weights = self.of_queries.indices[own], self.of_queries.data[own]
        first = self.of_gallery.indptr[columns]
        lengths = self.of_gallery.indptr[columns + 1] - first
        ends = np.cumsum(lengths)
        entries = np.repeat(first - ends + lengths, lengths) + np.arange(lengths.sum())
        least = np.minimum(self.of_gallery.data[entries], np.repeat(weights, lengths))
        return np.bincount(self.of_gallery.indices[entries], least, minlength=self.of_gallery.shape[0])

    def _squared(self, rows: slice, columns: slice) -> Tensor:
        """Squared Euclidean distances of a block."""
        with exact_products():
            found = torch.addmm(
                self.squares[None, columns], self.features[rows], self.features[columns].T, alpha=-2
            )
        return found.add_(self.squares[rows, None]).clamp_(min=0)

    def _nearest(self, count: int) -> tuple[np.ndarray, Tensor]:
        """Each image and its nearest ones, `count` in all, int64 [N, count]; its largest distance [N]."""
        images = len(self.features)
        nearest = np.empty((images, min(count, images)), np.int64)
        largest = torch.empty_like(self.squares)
        step = _rows_of(images)
        for start in range(0, images, step):
            rows = slice(start, min(start + step, images))
            block = self._squared(rows, slice(None))
            torch.amax(block, dim=1, out=largest[rows])
            block.diagonal(start).fill_(-1)  # nearer than a copy of the image
            nearest[rows] = smallest(block, nearest.shape[1]).cpu().numpy()
        check_finite(largest.cpu().numpy())
        return nearest, torch.where(largest > 0, largest, 1)  # 0: all images are alike

    def _encoded(self, neighbours: csr_array) -> csr_array:
        """V, float32 [N, N]."""
        rows = np.repeat(np.arange(neighbours.shape[0]), np.diff(neighbours.indptr))
        weights = np.empty(len(rows), np.float32)
        step = max(1, NUMBERS // self.features.shape[1])
        for start in range(0, len(rows), step):
            one, other = (
                torch.from_numpy(of[start : start + step]).to(self.features.device)
                for of in (rows, neighbours.indices)
            )
            squared = (self.features[one] - self.features[other]).square_().sum(dim=1)
            weights[start : start + step] = torch.exp(-squared / self.scale[one]).cpu().numpy()
        return csr_array((weights, neighbours.indices, neighbours.indptr), neighbours.shape)


class RerankedDistances:
    """Re-ranked distances of features [n, D] of the index's rows (csdn.evaluation.distances.Distances).

    Each trial is re-ranked alone, with all its queries and its whole gallery; what the rule of the protocol
    excludes for a query, such as images of its camera, is removed from the re-ranked list.
    """

    def __init__(self, features: np.ndarray, device: torch.device | str = "cpu") -> None:
        self.features, self.device = features, device

    def blocks(self, trials: Sequence[Trial], order: np.ndarray) -> Iterator[list[Rows]]:
        for number, one in enumerate(trials):
            ranking = ReRanking(self.features[one.queries], self.features[one.gallery], device=self.device)
            yield [
                Rows(number, slice(start, stop), partial(ranking.distances, start, stop))
                for start, stop in ranking.blocks()
            ]
            del ranking  # its encodings are not needed while the next ones are computed


def _rows_of(columns: int) -> int:
    """Number of rows of a block."""
    return max(LEAST_ROWS, NUMBERS // max(1, columns))


def smallest(block: Tensor, count: int) -> Tensor:
    """Columns of the `count` smallest values of each row, int64 [n, count]; of equal values the first.

    topk takes any of equal values: where the next value equals the last one taken, they are taken again.
    """
    values, columns = block.topk(min(count + 1, block.shape[1]), dim=1, largest=False)
    tied = (values[:, count - 1 : -1] == values[:, count:]).any(dim=1).nonzero()[:, 0].tolist()
    values, columns = values[:, :count], columns[:, :count]
    for row in tied:
        last = values[row] == values[row, -1]
        columns[row, last] = (block[row] == values[row, -1]).nonzero()[: last.sum(), 0]
    columns, by_column = columns.sort(dim=1)
    return columns.gather(1, values.gather(1, by_column).argsort(dim=1, stable=True))


def among_nearest(nearest: np.ndarray, count: int) -> csr_array:
    """1 for the first `count` images of each row of nearest [N, k]; float32 [N, N]."""
    first = np.sort(nearest[:, :count], axis=1)
    ends = np.arange(0, first.size + 1, first.shape[1])
    return csr_array((np.ones(first.size, np.float32), first.ravel(), ends), (len(nearest),) * 2)


def reciprocal(nearest: np.ndarray, k: int) -> csr_array:
    """R(i, k) as row i: 1 for its images; nearest: each image, then its nearest ones [N, at least k + 1]."""
    near = among_nearest(nearest, k + 1)
    return near.multiply(near.T.tocsr()).tocsr()


def expanded(members: csr_array, halves: csr_array) -> csr_array:
    """R*(i) as row i, from R(i, k1) and R(i, k1/2); the images are in rising order, the values undefined."""
    sizes = halves.sum(axis=1)
    shared = (members @ halves.T).multiply(members).tocsr()  # |R(i, k1) and R(j, k1/2)|, j in R(i, k1)
    shared.data = (3 * shared.data >= 2 * sizes[shared.indices]).astype(np.float32)
    shared.eliminate_zeros()
    found = members + shared @ halves
    found.sort_indices()
    return found
