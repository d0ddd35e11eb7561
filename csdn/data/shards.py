"""WebDataset shards: plain tar files, the same bytes for the same images, read again by byte range.

Headers are the standard library's: importing webdataset's writer would cost each worker torch's import.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from csdn.errors import UserError


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
