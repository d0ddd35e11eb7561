"""An approximate index of a large gallery, by FAISS; csdn.search.search scores its candidates exactly.

An inverted file: the features are clustered, a query looks into the nearest clusters only, and there compares
numbers of 8 bits. Filters are handed to FAISS, so they apply before the candidates are ranked.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from csdn.runtime.errors import UserError

if TYPE_CHECKING:
    import faiss

PROBES = 128  # clusters that a query looks into; this bounds the recall, the numbers of 8 bits do not
TRAINED_ON = 40  # features for each cluster, from which the clusters are computed
_SEED = 1234  # of the clustering, which begins with random features
_BLOCK = 16384  # features that are added at a time


def library() -> Any:
    """The module faiss; raises UserError where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise UserError(
            "indexes of large galleries need FAISS: pip install 'csdn[search]'; or search exactly: --exact"
        ) from None
    return faiss


def clusters_of(images: int) -> int:
    """The number of clusters for so many images: some 2 square roots, a power of two.

    Twice as many make a query half as long, and the index three times as long to build.

    >>> clusters_of(1_000_000), clusters_of(200_000)
    (2048, 1024)
    """
    return 2 ** max(4, round(np.log2(2 * np.sqrt(images))))


def build_index(blocks: Any, ids: np.ndarray, dimension: int, sample: np.ndarray) -> faiss.IndexIVF:
    """The index of features, given as blocks float [n, D] in the order of their ids.

    sample: float32 [m, D], by which the clusters are computed.
    """
    faiss = library()
    quantizer = faiss.IndexFlatIP(dimension)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer,
        dimension,
        clusters_of(len(ids)),
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
        False,  # of the features themselves, not of their differences from the cluster's centre
    )
    index.cp.seed, index.cp.spherical, index.cp.max_points_per_centroid = _SEED, True, TRAINED_ON
    index.train(sample)
    start = 0
    for block in blocks:
        index.add_with_ids(np.ascontiguousarray(block, np.float32), ids[start : start + len(block)])
        start += len(block)
    return index


def candidates(
    index: faiss.IndexIVF, queries: np.ndarray, count: int, allowed: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """(scores float32, ids int64) [q, count] of what is probably nearest to each query; id -1: none.

    allowed: the ids among which to search; None: all.
    """
    faiss = library()
    selector = None if allowed is None else faiss.IDSelectorBatch(allowed)
    settings = faiss.SearchParametersIVF(nprobe=min(PROBES, index.nlist), sel=selector)
    return index.search(queries, count, params=settings)


def read_index(path: Path) -> faiss.IndexIVF:
    """Raises UserError where the file is damaged."""
    faiss = library()
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise UserError(
            f"{path}: the index is damaged ({str(error).splitlines()[0]}); make it again: csdn gallery index"
        ) from None


def write_index(index: faiss.IndexIVF, path: Path) -> None:
    library().write_index(index, str(path))


def without(index: faiss.IndexIVF, ids: np.ndarray) -> faiss.IndexIVF:
    """The index with some images removed from it."""
    index.remove_ids(library().IDSelectorBatch(np.ascontiguousarray(ids, np.int64)))
    return index
