"""Shards wherever they are: a folder of this machine, or a prefix of an object store (`ingest.store`)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from csdn.data.shards import ShardReader
from csdn.errors import UserError

if TYPE_CHECKING:
    from csdn.params import Params

Range = tuple[str, int, int]  # shard, offset, size in bytes


class Shards(Protocol):
    """Reads images out of shards by byte range; any process can hold a copy. Every error is a UserError."""

    again: str  # what to do about a damaged shard

    def read(self, shard: str, offset: int, size: int) -> bytes: ...
    def read_all(self, ranges: Iterable[Range]) -> Iterator[bytes]: ...
    def where(self, shard: str) -> str: ...


def shards_at(params: Params, data: Path) -> str | Path:
    """Where the shards are: the prefix `ingest.store`, or the folder `shards` of the data."""
    return params.ingest.store or data / "shards"


def open_shards(place: str | Path) -> Shards:
    """A reader of the shards at an `s3://` prefix or in a folder.

    Raises UserError where an object store does not answer, or refuses.
    """
    if "://" in str(place):
        return StoredShards(str(place))
    return ShardReader(Path(place).absolute())  # a process elsewhere may stand in another folder


class StoredShards:
    """Reads images out of the shards below an `s3://` prefix, many at a time."""

    again = "Delete the object and run `dvc repro --force ingest`: it is made anew from its drop"

    def __init__(self, address: str) -> None:
        # Imported here: most machines read folders.
        from csdn.data.store import Store

        self.store = Store(address)
        self.store.check()  # here, not in each of the processes that will read
        self._threads: tuple[int, ThreadPoolExecutor] | None = None

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """The `size` bytes at `offset` of a shard; raises UserError where it is missing or too short."""
        try:
            data = self.store.read(shard, offset, size)
        except FileNotFoundError:
            raise UserError(
                f"{self.where(shard)}: no such object; `dvc repro --force ingest` makes it anew from its drop"
            ) from None
        if len(data) != size:
            raise UserError(
                f"{self.where(shard)}: ends before byte {offset + size}, where ingest put an image. "
                f"{self.again}"
            )
        return data

    def read_all(self, ranges: Iterable[Range]) -> Iterator[bytes]:
        """The bytes of each (shard, offset, size), in order; raises UserError as `read` does."""
        return self._pool().map(lambda place: self.read(*place), ranges)

    def where(self, shard: str) -> str:
        """The shard's place, for a message."""
        return self.store.address_of(shard)

    def _pool(self) -> ThreadPoolExecutor:
        """This process's threads: a fork leaves them behind."""
        from csdn.data.store.bucket import CONNECTIONS

        self.store.client()  # before the threads ask for it, each on its own
        if self._threads is None or self._threads[0] != os.getpid():
            self._threads = os.getpid(), ThreadPoolExecutor(CONNECTIONS)
        return self._threads[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_threads": None}
