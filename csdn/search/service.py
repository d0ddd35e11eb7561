"""What the service does, without HTTP: searches, changes of the gallery, and the exchange of the model.

The model in use, its gallery and its thresholds are one value (`InUse`) that is replaced and never changed.
So a search that has begun ends with what it began with, whatever is added, removed or promoted meanwhile.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from anyio import CapacityLimiter, to_thread

from csdn.data.images import extension_of
from csdn.evaluation.open_set import Thresholds, read_thresholds
from csdn.runtime.process import available_cores
from csdn.search.build import rows_of
from csdn.search.embedder import Embedder
from csdn.search.gallery import UPLOAD, Gallery
from csdn.search.images import GalleryImage, Grey16Ranges, picture_of
from csdn.search.results import picture
from csdn.search.search import Filters, PersonMatch, Searcher

BATCH = 16  # queries that are computed together, at most
PICTURE_SECONDS = 5  # for the pictures of an answer; a store that does not respond leaves them out

T = TypeVar("T")
R = TypeVar("R")
Key = TypeVar("Key")


@dataclass(frozen=True, eq=False)
class InUse:
    """A model with a gallery of its features, and thresholds where the model has any."""

    embedder: Embedder
    searcher: Searcher
    thresholds: Thresholds | None

    @property
    def gallery(self) -> Gallery:
        return self.searcher.gallery


@dataclass(frozen=True, eq=False)
class Query:
    """A picture uint8 [3, H, W] to search for, and how."""

    state: InUse
    picture: np.ndarray
    modality: str
    top: int
    filters: Filters


def answer(queries: list[Query]) -> list[list[PersonMatch]]:
    """The most similar people for each query. Queries of one model, and of equal filters, are one batch."""
    features: list[np.ndarray] = [np.empty(0)] * len(queries)
    for (state, modality), some in _grouped(queries, lambda query: (query.state, query.modality)):
        batch = np.stack([queries[n].picture for n in some])
        for n, feature in zip(some, state.embedder.embed(batch, modality), strict=True):
            features[n] = feature
    found: list[list[PersonMatch]] = [[] for _ in queries]
    for (state, top, filters), some in _grouped(queries, lambda one: (one.state, one.top, one.filters)):
        results = state.searcher.search(np.stack([features[n] for n in some]), top, filters)
        for n, people in zip(some, results, strict=True):
            found[n] = people
    return found


def _grouped(queries: list[Query], key: Callable[[Query], Key]) -> Iterable[tuple[Key, list[int]]]:
    groups: dict[Key, list[int]] = {}
    for n, query in enumerate(queries):
        groups.setdefault(key(query), []).append(n)
    return groups.items()


class Batches(Generic[T, R]):
    """Calls for one item each, computed together: those that arrive during a computation are the next one.

    No item waits for others to arrive. A thread computes. benchmarks/service.py measures what it brings.
    """

    def __init__(self, compute: Callable[[list[T]], list[R]]) -> None:
        self.compute = compute
        self.waiting: list[tuple[T, asyncio.Future[R]]] = []
        self.task: asyncio.Task[None] | None = None

    async def __call__(self, item: T) -> R:
        result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self.waiting.append((item, result))
        if self.task is None:
            self.task = asyncio.create_task(self._run())
        return await result

    async def _run(self) -> None:
        while self.waiting:
            batch, self.waiting = self.waiting[:BATCH], self.waiting[BATCH:]
            items, results = zip(*batch, strict=True)
            values = await self._values(items)
            for result, value in zip(results, values, strict=True):
                if result.done():  # its request was cancelled
                    continue
                if isinstance(value, Exception):
                    result.set_exception(value)
                else:
                    result.set_result(value)
        self.task = None

    async def _values(self, items: Sequence[T]) -> list[R | Exception]:
        """What is computed for each item, or why not; an item that fails does not fail the others."""
        try:
            return [*await asyncio.to_thread(self.compute, list(items))]
        except Exception as error:
            if len(items) == 1:
                return [error]
            return [value for item in items for value in await self._values([item])]


@dataclass(frozen=True)
class Settings:
    """What one service serves: addresses and paths are the operator's, never a client's.

    model: the folder of the model to begin with. project: the root of the project whose champion takes over;
    None: only a change of that folder does.
    """

    gallery: str
    model: Path
    thresholds: tuple[Path, ...]  # of which those of the model in use count
    grey16: Grey16Ranges
    device: str = "auto"
    threads: int = 0
    project: Path | None = None


class Service:
    """The state that requests share. find: computes a query's people; `Batches` where none is given."""

    def __init__(
        self, settings: Settings, find: Callable[[Query], Awaitable[list[PersonMatch]]] | None = None
    ) -> None:
        self.settings, self.model = settings, settings.model
        self.find = find or Batches(answer)
        gallery = Gallery.open(settings.gallery)
        embedder = self.open_model(self.model, gallery.manifest.flip_tta)
        gallery.check_model(embedder.model_hash, self.model)
        self.state = InUse(embedder, Searcher(gallery).with_index(), self.thresholds_of(embedder))
        self.writing = threading.Lock()  # held by whoever changes the gallery or replaces the state
        self.decoding, self.showing = CapacityLimiter(available_cores()), CapacityLimiter(4)
        self.changing = CapacityLimiter(1)  # changes wait for `writing` without a thread

    def open_model(self, folder: Path, flip_tta: bool) -> Embedder:
        settings = self.settings
        # One core is left for HTTP and for decoding.
        threads = settings.threads or max(1, available_cores() - 1)
        return Embedder.open(folder, flip_tta, settings.device, threads)

    def thresholds_of(self, embedder: Embedder) -> Thresholds | None:
        known = (read_thresholds(path) for path in self.settings.thresholds if path.exists())
        return next((one for one in known if one.model == embedder.model_hash), None)

    async def search(
        self, data: bytes, name: str, modality: str, top: int, filters: Filters
    ) -> tuple[InUse, list[PersonMatch]]:
        """The people most similar to an image file, and with what they were found. Raises BadImage.

        name: the file's, whose extension decides how it is decoded; nothing of that name is opened.
        """
        state = self.state
        picture = await self._picture(state, data, name, "")
        return state, await self.find(Query(state, picture, modality, top, filters))

    async def _picture(self, state: InUse, data: bytes, name: str, camera: str) -> np.ndarray:
        prepare = partial(picture_of, data, name, camera, state.embedder, self.settings.grey16)
        return await to_thread.run_sync(prepare, limiter=self.decoding)

    async def add(
        self, data: bytes, name: str, person: str, camera: str, modality: str, time: int | None
    ) -> str:
        """Add an image file that a client sent, and keep it in the gallery; returns its SHA-256 in hex.

        Labels are canonical; time: seconds since 1970. An image that was added before gets the new labels.
        Raises BadImage.
        """
        picture = await self._picture(self.state, data, name, camera)
        digest = hashlib.sha256(data)
        file = f"{digest.hexdigest()}.{extension_of(name)}"
        image = GalleryImage(UPLOAD + file, person, camera, modality, time, len(data), lambda: data)
        await to_thread.run_sync(self._add, image, digest.digest(), picture, limiter=self.changing)
        return digest.hexdigest()

    def _add(self, image: GalleryImage, digest: bytes, picture: np.ndarray) -> None:
        with self.writing:
            embedder = self.state.embedder
            if picture.shape[1:] != embedder.image_size:  # a promotion since it was decoded
                picture = picture_of(image.read(), image.source, image.camera, embedder, self.settings.grey16)
            features, rows = embedder.embed(picture[None], image.modality), rows_of([image], [digest])
            files = {image.source.removeprefix(UPLOAD): image.read()}
            self._change(lambda gallery: gallery.add(features, rows, files))

    async def remove(self, person: str) -> int:
        """Remove all images of a person, uploaded files too; returns their number, 0 for an unknown name."""
        return await to_thread.run_sync(self._remove, person, limiter=self.changing)

    def _remove(self, person: str) -> int:
        with self.writing:
            self.refresh()
            known = person and pc.is_in(pa.scalar(person), self.state.gallery.column("person")).as_py()
            return self._change(lambda gallery: gallery.remove([person])) if known else 0

    def _change(self, change: Callable[[Gallery], T]) -> T:
        """Change a copy of the gallery's list of parts, then search in that; the files are shared."""
        self.refresh()
        state = self.state
        gallery = copy.copy(state.gallery)
        result = change(gallery)
        self.state = InUse(state.embedder, Searcher(gallery).with_index(state.searcher), state.thresholds)
        return result

    def refresh(self) -> None:
        """Take over what another process has changed in the gallery; the caller holds `writing`."""
        state = self.state
        gallery = copy.copy(state.gallery)
        gallery.refresh()
        if gallery.manifest != state.gallery.manifest:
            gallery.check_model(state.embedder.model_hash, self.model)
            self.state = InUse(state.embedder, Searcher(gallery).with_index(state.searcher), state.thresholds)

    def exchange(self, embedder: Embedder, following: Gallery) -> bool:
        """Use another model, and the gallery `following` of its features; the caller holds `writing`.

        False where another process has just changed the gallery.
        """
        gallery, thresholds = copy.copy(self.state.gallery), self.thresholds_of(embedder)
        if not gallery.replace(following):
            return False
        self.state = InUse(embedder, Searcher(gallery).with_index(), thresholds)
        return True

    def follow(self, embedder: Embedder) -> bool:
        """Use a model that another service has put into the gallery already; the caller holds `writing`."""
        gallery = copy.copy(self.state.gallery)
        gallery.refresh()
        if gallery.manifest.model != embedder.model_hash:
            return False
        self.state = InUse(embedder, Searcher(gallery).with_index(), self.thresholds_of(embedder))
        return True

    async def pictures(self, state: InUse, sources: list[str]) -> list[str | None]:
        """Images of the gallery by their source, as data URIs; None where one cannot be read in time."""
        show = partial(picture, state.gallery.read_image)
        return await asyncio.gather(*(self._in_time(show, source) for source in sources))

    async def _in_time(self, show: Callable[[str], str | None], source: str) -> str | None:
        try:
            async with asyncio.timeout(PICTURE_SECONDS):
                return await to_thread.run_sync(show, source, limiter=self.showing, abandon_on_cancel=True)
        except TimeoutError:
            return None
