"""Whether shards still are what their names say: the hash in a name is that of all bytes of the file.

A hash that was found right is remembered with the file's size, time of change and inode, so that a shard is
read once and not at each ingest. What changes later without a trace in these is found when the image is read
(csdn.data.batch).
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from csdn.runtime.documents import read_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import write_json

if TYPE_CHECKING:
    from csdn.params import Params


HASH_DIGITS = 16  # of SHA-256, in a shard's name


def has_bytes_of(name: str, path: Path) -> bool:
    """Whether the file at `path` has the content that a shard of this name has."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return False
    return Path(name).stem.rpartition("-")[2] == digest[:HASH_DIGITS]


class Verified:
    """Shards whose hash was found right, remembered in a JSON file; without it each is read once more."""

    def __init__(self, path: Path, readers: int) -> None:
        self.path, self.readers = path, readers
        self.known = _read(path)

    def damaged(self, shards: Sequence[Path]) -> list[Path]:
        """Those of the shards that are missing, or not what their names say; others are forgotten."""
        before = {path: _trace(path) for path in shards}
        doubtful = [
            path for path in shards if before[path] is None or before[path] != self.known.get(path.name)
        ]
        with ThreadPoolExecutor(self.readers) as pool:  # hashing and reading leave Python's lock
            right = list(pool.map(lambda path: has_bytes_of(path.name, path), doubtful))
        bad = {path for path, sound in zip(doubtful, right, strict=True) if not sound}
        self.known = {path.name: before[path] for path in shards if path not in bad}
        return [path for path in shards if path in bad]

    def note(self, path: Path) -> None:
        """Remember a shard that was hashed as it was written."""
        self.known[path.name] = _trace(path)

    def save(self) -> None:
        if self.known != _read(self.path):
            write_json(self.path, self.known)


def _trace(path: Path) -> list[int] | None:
    """What changes when somebody writes to a file; None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _read(path: Path) -> dict[str, Any]:
    try:
        known = read_json(path)
    except UserError:
        return {}
    return known if isinstance(known, dict) else {}


# WebDataset shards: plain tar files, the same bytes for the same images, read again by byte range.
#
# Headers are the standard library's: importing webdataset's writer would cost each worker torch's import.


class ShardWriter:
    """Writes members `<key>.<extension>` and `<key>.json` into an open file; use it as a context manager.

    Nothing but the images and their facts decides the bytes: no time, no user, a fixed tar format.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.size = 0
        self._file = file
        self._digest = hashlib.sha256()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        """End the tar as tar does: two empty blocks, then up to the end of a record."""
        end = self.size + 2 * tarfile.BLOCKSIZE
        self._write(bytes(end - self.size + -end % tarfile.RECORDSIZE))

    def add(self, key: str, extension: str, image: bytes, facts: Mapping[str, Any]) -> int:
        """Append an image with its facts; returns the offset of the image's first byte in the tar."""
        offset = self.size + tarfile.BLOCKSIZE  # the name is short: its header is one block
        about = json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()
        self._write(_member(f"{key}.{extension}", image) + _member(f"{key}.json", about))
        return offset

    def hexdigest(self) -> str:
        """SHA-256 of all that was written."""
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)
        self.size += len(data)


# The standard library's header with its checksum blank; only name, size and checksum differ from it.
_HEADER = bytearray(tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT))
_CHECKSUM = slice(148, 156)
_HEADER[_CHECKSUM] = b" " * 8


def _member(name: str, data: bytes) -> bytes:
    """A tar member. tarfile makes the same bytes, in a third of the time that an image takes to decode."""
    header = bytearray(_HEADER)
    header[: len(name)] = name.encode("ascii")
    header[124:136] = b"%011o\0" % len(data)
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


class ShardReader:
    """Reads images out of the shards of a folder by byte range.

    Keeps `open_files` shards open in each process. Safe to hand to a forked or spawned process (reads carry
    their position with them); one thread at a time.
    """

    again = "Delete the file and run `dvc repro` again: it is made anew from its drop"

    def __init__(self, folder: str | Path, open_files: int = 128) -> None:
        self.folder = Path(folder)
        self.open_files = open_files
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """The `size` bytes at `offset` of a shard; raises UserError where it is missing or too short."""
        try:
            data = os.pread(self._descriptor(shard), size, offset)
        except OSError as error:
            raise UserError(f"{self.folder / shard}: cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise UserError(
                f"{self.folder / shard}: ends before byte {offset + size}, where ingest put an image. "
                f"{self.again}"
            )
        return data

    def read_all(self, ranges: Iterable[tuple[str, int, int]]) -> Iterator[bytes]:
        """The bytes of each (shard, offset, size), in order; raises UserError as `read` does."""
        return (self.read(*place) for place in ranges)

    def where(self, shard: str) -> str:
        """The shard's place, for a message."""
        return str(self.folder / shard)

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _descriptor(self, shard: str) -> int:
        if shard in self._descriptors:
            self._descriptors.move_to_end(shard)
            return self._descriptors[shard]
        if len(self._descriptors) == self.open_files:
            os.close(self._descriptors.popitem(last=False)[1])
        self._descriptors[shard] = self._open(shard)
        return self._descriptors[shard]

    def _open(self, shard: str) -> int:
        path = self.folder / shard
        if path.name != shard:
            raise UserError(
                f"{shard!r} is not a shard's name; data/samples.parquet was not written by ingest"
            )
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UserError(
                f"{path}: no such shard; `dvc repro` makes it anew from its drop (`dvc checkout` brings back "
                "what DVC has kept)"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": OrderedDict()}

    def __del__(self) -> None:
        self.close()


# Shards wherever they are: a folder of this machine, or a prefix of an object store (`ingest.store`).


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
        from csdn.data.storage import Store

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
        from csdn.data.storage import CONNECTIONS

        self.store.client()  # before the threads ask for it, each on its own
        if self._threads is None or self._threads[0] != os.getpid():
            self._threads = os.getpid(), ThreadPoolExecutor(CONNECTIONS)
        return self._threads[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_threads": None}


# An image that is no more what ingest put into its shard, in words: asked for only once it was found.


def damaged_image(shards: Shards, shard: str, offset: int) -> str:
    """The message for the image at byte `offset` of a shard."""
    return (
        f"{shards.where(shard)}: the image at byte {offset}{_whose(shards, shard, offset)} is not what "
        f"ingest put there: the file was damaged or altered since. {shards.again}"
    )


def _whose(shards: Shards, shard: str, offset: int) -> str:
    """Which image it is, by the tables beside a folder of shards; nothing where they cannot say."""
    data = Path(shards.where(shard)).parent.parent
    columns = ["path", "person_row", "modality", "camera"]
    try:
        place = [("shard", "=", shard), ("offset", "=", offset)]
        row = pq.read_table(data / "samples.parquet", columns=columns, filters=place).to_pylist()[0]
        people = pq.read_table(data / "people.parquet", filters=[("row", "=", row["person_row"])])
        person = people["person"][0].as_py()
    except (pa.ArrowException, OSError, IndexError):
        return ""
    return f" ({row['path']}: {row['modality']}, camera {row['camera']}, person {person})"
