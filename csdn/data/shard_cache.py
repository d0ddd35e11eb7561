"""A cache of shards on the local disk: each machine fetches a shard of an object store once, whole.

`scaling.cache` names the folder and its size. A shard is fetched when its first image is wanted, compared
with the hash in its name, and kept; a shard for which there is no room is read by byte ranges, as without a
cache. So a cache that is smaller than the data serves the shards that it has, and never exchanges them.

    <folder>/<shard>.tar           fetched and verified
    <folder>/.<shard>.tar.partial  being fetched; as large as the shard will be
    <folder>/.<shard>.tar.lock     locked by the process that fetches it
    <folder>/.room.lock            locked while the folder's size is looked at
    <folder>/.used                 locked (shared) by every process that reads from the cache

Shards that no reader needs are removed only by a process that is alone in the cache, when it begins: those
that were not used for the longest time first.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from csdn.data.shards import Range, ShardReader, StoredShards, has_bytes_of
from csdn.runtime.errors import UserError, explain_os_error
from csdn.runtime.files import temp_path

CHUNK = 8 * 2**20  # bytes of a request for a part of a shard
CHUNKS = 8  # such requests at a time
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of this process, for all its readers (on Ray each task has one): the descriptor of the lock of each folder
# that it uses, and the shards that it reads by ranges, by folder and address.
_IN_USE: dict[Path, int] = {}
_WITHOUT_ROOM: dict[tuple[Path, str], set[str]] = defaultdict(set)

log = logging.getLogger(__name__)


class CachedShards:
    """Reads images out of the shards of an object store, those that have room by way of a folder.

    named: the folder; "~" in it, and "", are those of the machine that reads. limit: bytes of the folder,
    which any number of processes may share. wanted: the shards that this run will read; they have room before
    others.
    """

    def __init__(self, stored: StoredShards, named: str | Path, limit: int, wanted: Collection[str]) -> None:
        self.stored, self.named, self.limit, self.wanted = stored, named, limit, frozenset(wanted)
        self.again = stored.again
        self._warned = False

    @cached_property
    def folder(self) -> Path:
        """The folder on this machine; for "" below that for caches of its user (XDG_CACHE_HOME)."""
        if self.named:
            return Path(self.named).expanduser().absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "csdn/shards"

    @cached_property
    def _local(self) -> ShardReader:
        return ShardReader(self.folder)

    def __getstate__(self) -> dict[str, Any]:
        """Another machine may have another folder."""
        return {name: value for name, value in vars(self).items() if name not in ("folder", "_local")}

    def read_all(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each (shard, offset, size), in order; raises UserError where a shard is missing, too
        short, or not what ingest wrote.
        """
        cached = [self._cached(one) for one in ranges]
        rest = [one for one, data in zip(ranges, cached, strict=True) if data is None]
        stored = iter(self.stored.read_all(rest))
        return [next(stored) if data is None else data for data in cached]

    def read_again(self, one: Range) -> bytes:
        """The bytes from the store; if the cached shard is not the store's, it is fetched again."""
        shard = one[0]
        self._local.close()  # another process may have replaced the file
        try:
            if not has_bytes_of(shard, self.folder / shard):
                (self.folder / shard).unlink(missing_ok=True)
        except OSError as error:  # of the disk
            self._explain(error)
        return self.stored.read_again(one)

    def where(self, shard: str) -> str:
        return self.stored.where(shard)

    def _cached(self, one: Range) -> bytes | None:
        """The bytes from the cache; None where the shard is not in it, and has no room."""
        shard, without_room = one[0], _WITHOUT_ROOM[self.folder, self.stored.store.address]
        if shard in without_room:
            return None
        try:
            self._begin()
            here = (self.folder / shard).exists() or self._fetch(shard)
        except OSError as error:
            self._explain(error)
            here = False
        if not here:
            without_room.add(shard)
            return None
        try:
            return self._local.read(*one)
        except UserError:  # it was cut or removed
            return self.read_again(one)

    # ---- the folder

    def _begin(self) -> None:
        """Make the folder, and room in it if no other process uses it; once in each process."""
        if self.folder in _IN_USE:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = _opened(self.folder / ".used")
        try:
            if _is_alone(lock):
                self._make_room()
            fcntl.flock(lock, fcntl.LOCK_SH)
        except BaseException:
            os.close(lock)
            raise
        _IN_USE[self.folder] = lock  # until the process ends
        for name in self.wanted:
            with suppress(OSError):  # it is not there, or another user's
                os.utime(self.folder / name)  # used now

    def _explain(self, error: OSError) -> None:
        """Warn of a full disk; raise UserError for any other error of the folder."""
        if error.errno not in _FULL:
            raise UserError(
                f"{self.folder}: cannot keep shards ({explain_os_error(error) or error}); correct "
                "scaling.cache.folder, or set scaling.cache.gigabytes to 0 to read without a cache"
            ) from error
        if not self._warned:
            log.warning("%s: the disk is full; further shards are read from the store", self.folder)
        self._warned = True

    def _make_room(self) -> None:
        """Remove what killed processes left, and shards that are not wanted, until the wanted ones fit."""
        for leftover in (*self.folder.glob(".*.tar.partial"), *self.folder.glob(".*.tar.lock")):
            leftover.unlink(missing_ok=True)
        sizes = self._sizes()
        others = [name for name in sizes if name not in self.wanted]
        if not others:
            return
        listed = {found.name: found.size for found in self.stored.store.objects()}
        missing = sum(listed.get(name, 0) for name in self.wanted if name not in sizes)
        for name in sorted(others, key=lambda name: (self.folder / name).stat().st_mtime):
            if sum(sizes.values()) + missing <= self.limit:
                return
            (self.folder / name).unlink(missing_ok=True)
            del sizes[name]

    def _sizes(self) -> dict[str, int]:
        """Name -> bytes of the shards in the folder, and of those that are being fetched."""
        sizes = {}
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # a damaged one was removed meanwhile
                if path.name.endswith((".tar", ".tar.partial")):
                    sizes[path.name] = path.stat().st_size
        return sizes

    def _fetch(self, shard: str) -> bool:
        """Fetch a shard; False if it has no room. Raises UserError where the store sends other bytes."""
        path = self.folder / shard
        with FileLock(temp_path(path).with_suffix(".lock")):
            if path.exists():  # another process was faster
                return True
            temporary = temp_path(path)
            try:
                size = self._size(shard)
                if not self._reserve(temporary, size):
                    return False
                self._download(shard, size, temporary)
                with self._room():
                    temporary.replace(path)
                return True
            finally:
                temporary.unlink(missing_ok=True)

    def _size(self, shard: str) -> int:
        size = self.stored.store.size(shard)
        if size is None:
            raise UserError(
                f"{self.where(shard)}: no such object; `dvc repro --force ingest` makes it anew from its drop"
            )
        return size

    def _room(self) -> FileLock:
        """The lock of the names in the folder, by which their sizes are added up."""
        return FileLock(self.folder / ".room.lock")

    def _reserve(self, temporary: Path, size: int) -> bool:
        """Make the temporary file, of the shard's size, if that has room in the folder."""
        with self._room():
            if sum(self._sizes().values()) + size > self.limit:
                return False
            with temporary.open("wb") as file:
                file.truncate(size)
        return True

    def _download(self, shard: str, size: int, temporary: Path) -> None:
        """Fetch the whole shard; one whose hash is not that of its name is asked for again once."""
        for _ in range(2):
            with temporary.open("r+b") as file:
                for data in self._parts(shard, size):
                    file.write(data)
            if has_bytes_of(shard, temporary):
                return
        raise UserError(
            f"{self.where(shard)}: is not what ingest wrote, its hash is not that in its name. {self.again}"
        )

    def _parts(self, shard: str, size: int) -> Iterator[bytes]:
        ranges = [(shard, start, min(CHUNK, size - start)) for start in range(0, size, CHUNK)]
        for first in range(0, len(ranges), CHUNKS):
            yield from self.stored.read_all(ranges[first : first + CHUNKS])


def _is_alone(lock: int) -> bool:
    """Whether no other process holds the lock; then this one does, so that no other can begin to read."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _opened(path: Path) -> int:
    """A descriptor to be locked: writable where it can be, as NFS locks no other exclusively."""
    options = os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, os.O_RDWR | options, 0o666)
    except PermissionError:  # another user made it
        return os.open(path, os.O_RDONLY | options, 0o666)
