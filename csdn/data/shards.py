"""Shards: WebDataset tars of images that ingest writes once and readers access by byte range.

`ShardWriter` writes tar files by webdataset, with the same bytes for the same images. A shard's name ends
with the hash of its bytes; `VerifiedShards` checks that the files still match their names. `open_shards`
gives csdn.data.batch a reader of a local folder, or of an object store (csdn.data.storage, `ingest.store`),
whose shards csdn.data.shard_cache keeps on the local disk. docs/webdataset.md reads them without this module.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from csdn.runtime.documents import read_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import file_sha256, write_json

if TYPE_CHECKING:
    from csdn.params import Params


HASH_DIGITS = 16  # of SHA-256, in a shard's name
Range = tuple[str, int, int]  # shard, offset, size in bytes


# Writing.


class ShardWriter:
    """Writes members `<key>.<extension>` and `<key>.json` into an open file; use it as a context manager.

    The images and their facts alone decide the bytes: webdataset writes the tar without times and users.
    """

    def __init__(self, file: BinaryIO) -> None:
        from webdataset import TarWriter  # imported here, in the processes that write: it imports torch

        self.size = 0
        self._file = _HashedFile(file)
        self._tar = TarWriter(self._file, user="", group="", mode=0o644, mtime=0, encoder=False)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._tar.close()
        self.size = self._file.size

    def add(self, key: str, extension: str, image: bytes, facts: Mapping[str, Any]) -> int:
        """Append an image with its facts; returns the offset of the image's first byte in the tar."""
        offset = self.size + tarfile.BLOCKSIZE  # after the header, which is one block, as the name is short
        about = json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()
        for name, data in ((extension, image), ("json", about)):
            self._tar.write({"__key__": key, name: data})
            self.size += tarfile.BLOCKSIZE + len(data) + -len(data) % tarfile.BLOCKSIZE
        return offset

    def hexdigest(self) -> str:
        """SHA-256 of all bytes, when the tar is ended."""
        return self._file.digest.hexdigest()


class _HashedFile:
    """A file that hashes what is written into it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)


# Reading, from a folder or an object store.


class Shards(Protocol):
    """Reads images out of shards by byte range; every process can have a copy. Every error is a UserError."""

    again: str  # advice about a damaged shard

    def read_all(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each range, in order; raises UserError where a shard is missing or too short."""
        ...

    def read_again(self, one: Range) -> bytes:
        """The bytes of a range that were not those that ingest recorded, from where they come from."""
        ...

    def where(self, shard: str) -> str:
        """The path or address of a shard, for messages."""
        ...


@dataclass(frozen=True)
class StoredPlace:
    """Where shards are: the prefix of an object store, and the folder and bytes of each machine's cache.

    cache: as in `scaling.cache.folder`, "" for the user's own. With 0 bytes there is no cache.
    """

    address: str
    cache: str | Path = ""
    cache_bytes: int = 0


Place = Path | StoredPlace


def shards_at(params: Params, data: Path) -> Place:
    """Where the shards are: the prefix `ingest.store`, or the folder `shards` of the data."""
    if not params.ingest.store:
        return data / "shards"
    cache = params.scaling.cache
    folder = cache.folder or ""
    if folder and not folder.startswith("~"):  # "~" is each machine's own
        folder = str(Path(folder).absolute())
    return StoredPlace(params.ingest.store, folder, int(cache.gigabytes * 10**9))


def open_shards(place: Place, wanted: Collection[str] = ()) -> Shards:
    """A reader of the shards of a folder or an object store.

    wanted: the shards that will be read, for which the cache of an object store makes room.
    Raises UserError where an object store does not respond, or refuses.
    """
    if isinstance(place, Path):
        return ShardReader(place.absolute())  # another process may have another working directory
    stored = StoredShards(place.address)
    if not place.cache_bytes:
        return stored
    from csdn.data.shard_cache import CachedShards

    return CachedShards(stored, place.cache, place.cache_bytes, wanted)


class ShardReader:
    """Reads images out of the shards of a folder by byte range.

    Keeps up to `open_files` shards open in each process; another process may use a copy. Within a process one
    thread at a time may use it.
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

    def read_all(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each (shard, offset, size), in order; raises UserError as `read` does."""
        return [self.read(*one) for one in ranges]

    def read_again(self, one: Range) -> bytes:
        return self.read(*one)

    def where(self, shard: str) -> str:
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


class StoredShards:
    """Reads images out of the shards of an object store; those of a call are fetched together."""

    again = "Delete the object and run `dvc repro --force ingest`: it is made anew from its drop"

    def __init__(self, address: str) -> None:
        # Imported here, because most machines read folders.
        from csdn.data.storage import Store

        self.store = Store(address)
        self.store.check()  # here, not again in each process that reads

    def read_all(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each (shard, offset, size), in order; raises UserError where a shard is missing or
        too short.
        """
        try:
            contents = self.store.ranges(ranges)
        except FileNotFoundError as error:
            raise UserError(
                f"{error}: no such object; `dvc repro --force ingest` makes it anew from its drop"
            ) from None
        for (shard, offset, size), data in zip(ranges, contents, strict=True):
            if len(data) != size:
                raise UserError(
                    f"{self.where(shard)}: ends before byte {offset + size}, where ingest put an image. "
                    f"{self.again}"
                )
        return contents

    def read_again(self, one: Range) -> bytes:
        return self.read_all([one])[0]

    def where(self, shard: str) -> str:
        return self.store.address_of(shard)


# Checking.


def has_bytes_of(name: str, path: Path) -> bool:
    """Whether the hash of the file at `path` is the one in the shard's name."""
    try:
        digest = file_sha256(path)
    except FileNotFoundError:
        return False
    return Path(name).stem.rpartition("-")[2] == digest[:HASH_DIGITS]


class VerifiedShards:
    """Checks shards against the hashes in their names, and remembers in a JSON file which of them match.

    A shard that matched is remembered by size, modification time and inode, so it is hashed once, not at each
    ingest. A change that leaves these as they were is found when an image is read (csdn.data.batch).
    """

    def __init__(self, path: Path, readers: int) -> None:
        self.path, self.readers = path, readers
        self.known = _read_known(path)

    def damaged(self, shards: Sequence[Path]) -> list[Path]:
        """Those of the shards that are missing or do not match their names; forgets all shards but the
        others.
        """
        before = {path: _file_state(path) for path in shards}
        doubtful = [
            path for path in shards if before[path] is None or before[path] != self.known.get(path.name)
        ]
        with ThreadPoolExecutor(self.readers) as pool:  # hashing and reading release the GIL
            matches = list(pool.map(lambda path: has_bytes_of(path.name, path), doubtful))
        bad = {path for path, match in zip(doubtful, matches, strict=True) if not match}
        self.known = {path.name: before[path] for path in shards if path not in bad}
        return [path for path in shards if path in bad]

    def note(self, path: Path) -> None:
        """Remember a shard that was hashed while it was written."""
        self.known[path.name] = _file_state(path)

    def save(self) -> None:
        if self.known != _read_known(self.path):
            write_json(self.path, self.known)


def _file_state(path: Path) -> list[int] | None:
    """Values that change when a file is written; None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _read_known(path: Path) -> dict[str, Any]:
    try:
        known = read_json(path)
    except UserError:
        return {}
    return known if isinstance(known, dict) else {}


def damaged_image(shards: Shards, shard: str, offset: int) -> str:
    """The error message about an image at byte `offset` of a shard whose hash is not the recorded one."""
    return (
        f"{shards.where(shard)}: the image at byte {offset}{_whose(shards, shard, offset)} is not what "
        f"ingest put there: the file was damaged or altered since. {shards.again}"
    )


def _whose(shards: Shards, shard: str, offset: int) -> str:
    """Which image it is, if the tables beside a folder of shards tell."""
    data = Path(shards.where(shard)).parent.parent
    columns = ["path", "person_row", "modality", "camera"]
    try:
        image = [("shard", "=", shard), ("offset", "=", offset)]
        row = pq.read_table(data / "samples.parquet", columns=columns, filters=image).to_pylist()[0]
        people = pq.read_table(data / "people.parquet", filters=[("row", "=", row["person_row"])])
        person = people["person"][0].as_py()
    except (pa.ArrowException, OSError, IndexError):
        return ""
    return f" ({row['path']}: {row['modality']}, camera {row['camera']}, person {person})"
