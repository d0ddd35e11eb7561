"""Search: the people and images of a gallery that are most similar to queries.

Up to EXACT_UP_TO images the features are compared one by one, in blocks read from the disk. Beyond, an index
(csdn.search.index) proposes candidates, which are then scored exactly. Filters decide before anything is
ranked. Equal scores are ranked in the order of the gallery.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from csdn.data.labels import canonical_label
from csdn.evaluation.rerank import rerank
from csdn.runtime.errors import UserError
from csdn.search.gallery import Gallery
from csdn.search.index import candidates, read_index

if TYPE_CHECKING:
    import faiss

EXACT_UP_TO = 200_000  # images that are searched without an index
RERANKED_UP_TO = 30_000  # queries and images together; time grows with the square (docs/benchmarks.md)
CANDIDATES = 200  # of the index for each query, at least
SHOWN = 3  # images of a person in a result
RANKED = 2**21  # images, of all queries together, that are ranked at a time
_BLOCK_BYTES = 32 * 2**20  # of the features that are compared at a time, as float32
_QUERIES = 1024  # that are compared at a time
NOBODY = 0  # in `Searcher.people`


@dataclass(frozen=True)
class Filters:
    """Which images of the gallery are searched; cameras and people by canonical label, times in seconds."""

    modality: str | None = None
    cameras: Sequence[str] = ()
    since: int | None = None
    until: int | None = None

    def mask(self, gallery: Gallery) -> np.ndarray:
        """bool [images]; an image without a time passes no filter by time."""
        kept = pa.chunked_array([pa.array(np.ones(len(gallery), bool))])
        if self.modality:
            kept = pc.and_(kept, pc.equal(gallery.column("modality"), self.modality))
        if self.cameras:
            names = pa.array([canonical_label(name) for name in self.cameras])
            kept = pc.and_(kept, pc.is_in(gallery.column("camera"), names))
        times = gallery.column("time")
        for bound, compare in ((self.since, pc.greater_equal), (self.until, pc.less)):
            if bound is not None:
                inside = compare(times, pa.scalar(bound, pa.timestamp("s", "UTC")))
                kept = pc.and_(kept, pc.fill_null(inside, False))
        return kept.to_numpy()


@dataclass(frozen=True)
class ImageMatch:
    """An image of the gallery: its score (cosine, -1..1) and its facts."""

    score: float
    source: str
    person: str
    camera: str
    modality: str
    time: str | None  # ISO 8601


@dataclass(frozen=True)
class PersonMatch:
    """A person of the gallery, "" for an unlabelled image; the best images come first."""

    person: str
    score: float
    images: list[ImageMatch] = field(default_factory=list)


class Searcher:
    """Searches of a gallery as it is now. Threads may share it."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.parts, self.index_entry = list(gallery.parts), gallery.manifest.index
        self.starts = np.cumsum([0, *map(len, self.parts)])
        self.ids = gallery.column("id").to_numpy()
        self.people = _people(gallery)

    def search(
        self, queries: np.ndarray, top: int = 10, filters: Filters | None = None, exact: bool = False
    ) -> list[list[PersonMatch]]:
        """The `top` most similar people for each query, features float32 [q, D] of unit length.

        exact: without the index, whatever the size of the gallery.
        """
        filters = filters or Filters()
        mask, top = filters.mask(self.gallery), min(top, self.counts(filters)[0])
        found: list[list[PersonMatch]] = [[] for _ in queries]
        waiting, count = np.arange(len(queries)), 4 * top
        while top and len(waiting):
            # A person with many images near a query takes many places: then more images are ranked.
            count, left = min(count, int(mask.sum())), []
            for some in np.array_split(waiting, 1 + len(waiting) * count // RANKED):
                nearest = self.nearest(queries[some], count, mask, exact)
                for n, scores, positions in zip(some, *nearest, strict=True):
                    found[n] = self._grouped(scores, positions, top)
                    if len(found[n]) < top and count < mask.sum():
                        left.append(n)
            waiting, count = np.array(left, np.int64), 4 * count
        return found

    def search_reranked(
        self, queries: np.ndarray, top: int = 10, filters: Filters | None = None
    ) -> list[list[PersonMatch]]:
        """`search` in the order of k-reciprocal re-ranking (csdn.evaluation.rerank); scores stay cosines.

        All queries and all images that pass the filters are compared with each other. Raises UserError for
        more than RERANKED_UP_TO of them.
        """
        positions = np.flatnonzero((filters or Filters()).mask(self.gallery))
        if len(positions) + len(queries) > RERANKED_UP_TO:
            raise UserError(
                f"re-ranking {len(queries)} queries and {len(positions)} images: at most {RERANKED_UP_TO} "
                "are re-ranked, since each is compared with each; narrow the search by camera or time"
            )
        if not len(queries) or not len(positions):
            return [[] for _ in queries]
        features = self.features(positions)
        order = np.argsort(rerank(queries, features), axis=1, kind="stable")
        scores = np.take_along_axis(queries @ features.T, order, axis=1)
        return [self._grouped(*pair, top) for pair in zip(scores, positions[order], strict=True)]

    def nearest(
        self, queries: np.ndarray, count: int, mask: np.ndarray | None = None, exact: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 and positions int64 [q, count] of the most similar images; position -1: none."""
        mask = np.ones(len(self.ids), bool) if mask is None else mask
        queries = np.ascontiguousarray(queries, np.float32)
        entry = self.index_entry
        if exact or entry is None or mask.sum() <= EXACT_UP_TO:
            return self._exact(queries, count, mask)
        covered = self.ids <= entry.last
        best = Best(len(queries), count)
        best.merge(*self._exact(queries, count, mask & ~covered))
        allowed = None if mask.all() else self.ids[mask & covered]
        best.merge(*self.through(self.index, queries, count, allowed))
        short = (best.positions < 0).any(axis=1)  # the clusters that were looked into have too few
        if short.any():
            best.scores[short], best.positions[short] = self._exact(queries[short], count, mask)
        return best.scores, best.positions

    def through(
        self, index: faiss.IndexIVF, queries: np.ndarray, count: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`nearest` among the candidates of an index; allowed: ids of the images to search, None: all."""
        best = Best(len(queries), count)
        if most := index.ntotal if allowed is None else len(allowed):
            _, ids = candidates(index, queries, min(max(CANDIDATES, 4 * count), most), allowed)
            best.merge(*self._scored(queries, ids))
        return best.scores, best.positions

    def counts(self, filters: Filters) -> tuple[int, int]:
        """(people, images) that pass the filters; each image without a name counts as one more person."""
        people = self.people[filters.mask(self.gallery)]
        images = np.bincount(people, minlength=1)  # of each person; sorting takes 70 times as long
        return int(images[NOBODY] + np.count_nonzero(images[NOBODY + 1 :])), len(people)

    # ---- exact comparison

    def _exact(self, queries: np.ndarray, count: int, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        best = [Best(len(queries[start:][:_QUERIES]), count) for start in range(0, len(queries), _QUERIES)]
        for positions, block in self.blocks(mask):
            for number, part in enumerate(best):
                some = torch.from_numpy(queries[number * _QUERIES :][:_QUERIES])
                part.merge_block(some @ block.T, positions)
        if not best:
            return np.empty((0, count), np.float32), np.empty((0, count), np.int64)
        return np.concatenate([b.scores for b in best]), np.concatenate([b.positions for b in best])

    def blocks(self, mask: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Positions [n], ascending, and float32 features [n, D] of the images in the mask.

        The features of one block after another are in the same memory, since getting new memory takes as long
        as comparing a query with them.
        """
        dimension = self.gallery.manifest.dimension
        step = max(1, _BLOCK_BYTES // (4 * dimension))
        memory = torch.empty(step, dimension)
        for part, start in zip(self.parts, self.starts, strict=False):
            rows = np.flatnonzero(mask[start : start + len(part)])
            whole = len(rows) == len(part)
            for first in range(0, len(rows), step):
                some = rows[first : first + step]
                features = part.features[first : first + step] if whole else part.features[some]
                yield start + some, memory[: len(some)].copy_(torch.from_numpy(features))

    # ---- candidates of the index

    def with_index(self, before: Searcher | None = None) -> Searcher:
        """Itself, with its index in memory now: a later change of the gallery removes the file.

        before: of an earlier state of the gallery, whose index is taken if it is the same.
        """
        if self.index_entry:
            owner = before if before and before.index_entry == self.index_entry else self
            self.index = owner.index
        return self

    @cached_property
    def index(self) -> faiss.IndexIVF:
        """The index in memory."""
        path = self.gallery.index_path(self.index_entry) if self.index_entry else None
        if not path or not path.exists():
            raise UserError(f"{self.gallery.address}: has changed since it was opened; run the command again")
        return read_index(path)

    def _scored(self, queries: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Exact scores and positions [q, n] of candidates by id; -infinity, -1 where an image is gone."""
        positions = np.searchsorted(self.ids, ids)
        there = (ids >= 0) & (self.ids[np.minimum(positions, len(self.ids) - 1)] == ids)
        scores = np.full(ids.shape, -np.inf, np.float32)
        for query, found, known in zip(range(len(queries)), positions, there, strict=True):
            scores[query, known] = self.features(found[known]) @ queries[query]
        return scores, np.where(there, positions, -1)

    def features(self, positions: np.ndarray) -> np.ndarray:
        """Features float32 [n, D] of the images at these positions."""
        features = np.empty((len(positions), self.gallery.manifest.dimension), np.float32)
        part_of = np.searchsorted(self.starts, positions, side="right") - 1
        for number in np.unique(part_of):
            own = np.flatnonzero(part_of == number)
            own = own[np.argsort(positions[own])]  # in the order of the file
            features[own] = self.parts[number].features[positions[own] - self.starts[number]]
        return features

    # ---- people

    def _grouped(self, scores: np.ndarray, positions: np.ndarray, top: int) -> list[PersonMatch]:
        """The first `top` people of a ranking of images, each with their best images."""
        people: dict[tuple[int, int], PersonMatch] = {}
        for score, position in zip(scores.tolist(), positions.tolist(), strict=True):
            if position < 0:
                break
            person = int(self.people[position])
            key = (person, position if person == NOBODY else -1)
            if key not in people and len(people) == top:
                continue
            if key in people and len(people[key].images) == SHOWN:
                continue
            match = self._match(score, position)
            people.setdefault(key, PersonMatch(match.person, score)).images.append(match)
        return list(people.values())

    def _match(self, score: float, position: int) -> ImageMatch:
        facts = self.facts(position)
        time = facts["time"] and facts["time"].isoformat()
        return ImageMatch(score, facts["source"], facts["person"], facts["camera"], facts["modality"], time)

    def facts(self, position: int) -> dict[str, Any]:
        """The row (csdn.search.gallery.ROWS) of the image at a position."""
        part = int(np.searchsorted(self.starts, position, side="right")) - 1
        return self.parts[part].rows.slice(position - int(self.starts[part]), 1).to_pylist()[0]


class Best:
    """The best `count` images of each of q queries so far: scores [q, count], and positions, -1: none yet."""

    def __init__(self, queries: int, count: int) -> None:
        self.scores = np.full((queries, count), -np.inf, np.float32)
        self.positions = np.full((queries, count), -1)

    def merge_block(self, scores: torch.Tensor, positions: np.ndarray) -> None:
        """Add the scores [q, n] of images at `positions` [n], which are greater than those before."""
        if not scores.numel() or not self.scores.shape[1]:
            return
        bound = torch.from_numpy(self.scores[:, -1:])
        if torch.isinf(bound).any():  # not yet full: what is among the block's best is enough
            kth = torch.topk(scores, min(self.scores.shape[1], scores.shape[1])).values[:, -1:]
            better = scores >= torch.maximum(kth, bound)
        else:
            better = scores > bound
        query, column = np.divmod(np.flatnonzero(better.numpy()), scores.shape[1])
        self._merge(query, scores.numpy()[query, column], positions[column])

    def merge(self, scores: np.ndarray, positions: np.ndarray) -> None:
        """Add images by their scores and positions [q, n]; position -1: none."""
        query, column = np.nonzero(positions >= 0)
        self._merge(query, scores[query, column], positions[query, column])

    def _merge(self, query: np.ndarray, scores: np.ndarray, positions: np.ndarray) -> None:
        if not len(query):
            return
        old, column = np.nonzero(self.positions >= 0)
        query = np.concatenate([old, query])
        scores = np.concatenate([self.scores[old, column], scores])
        positions = np.concatenate([self.positions[old, column], positions])
        order = np.lexsort((positions, -scores, query))
        query, scores, positions = query[order], scores[order], positions[order]
        place = np.arange(len(query)) - np.searchsorted(query, query)
        kept = place < self.scores.shape[1]
        self.scores[query[kept], place[kept]] = scores[kept]
        self.positions[query[kept], place[kept]] = positions[kept]


def _people(gallery: Gallery) -> np.ndarray:
    """The number of each image's person, int64 [images]."""
    names = pc.dictionary_encode(gallery.column("person")).combine_chunks()
    names = names if isinstance(names, pa.DictionaryArray) else names.chunk(0)
    labels = np.array(names.dictionary.to_pylist(), dtype=object)
    numbers = np.cumsum(labels != "") * (labels != "")
    return numbers[names.indices.to_numpy()] if len(labels) else np.zeros(0, np.int64)
