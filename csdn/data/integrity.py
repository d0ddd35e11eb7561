"""Whether shards still are what their names say: the hash in a name is that of all bytes of the file.

A hash that was found right is remembered with the file's size, time of change and inode, so that a shard is
read once and not at each ingest. What changes later without a trace in these is found when the image is read
(csdn.data.rows).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from csdn.documents import read_json
from csdn.errors import UserError
from csdn.files import write_json

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
