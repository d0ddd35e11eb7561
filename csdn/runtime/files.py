"""Atomic writes, locks, and the JSON format of the outputs.

A file or folder is written under a temporary name, flushed to disk, then renamed. A killed run leaves at most
`.<name>.partial` beside the output; `remove_temp` removes such leftovers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csdn.runtime.errors import UserError

LOCK_SECONDS = 60  # to wait for a lock, which is held only while a small file is read and written


def temp_path(path: Path) -> Path:
    """The temporary name of an output, in the same folder (a rename must not cross file systems)."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write; it becomes `path` when the block ends, and is removed if it fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temp_path(path)
    try:
        with with_filename(path):
            yield temporary
            rename_flushed(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; it becomes `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temp_path(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with with_filename(path):
            yield temporary
            for file in (*temporary.rglob("*"), temporary):
                fsync(file)
            if path.exists():
                shutil.rmtree(path)
            temporary.replace(path)
            fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def with_filename(path: Path) -> Iterator[None]:
    """Add `path` to an OSError of the block that names no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # otherwise Python would show the name in place of the message
            error.filename = error.filename or str(path)
        raise


def rename_flushed(temporary: Path, path: Path) -> None:
    """Rename after the bytes are on disk, so that a power cut cannot leave an empty file under the name."""
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Flush the bytes of a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | Path, value: Any) -> None:
    """Replace a file with `as_json(value)`."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(as_json(value))


def as_json(value: Any) -> bytes:
    """`value` as JSON with sorted keys and one entry a line: the same value gives the same bytes.

    Characters that do not print are escaped: people read these files in terminals and with `git diff`.
    Raises ValueError for NaN and infinity, which JSON does not have.
    """
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    lines = text.split("\n")
    return "".join(f"{_escaped(line)}\n" for line in lines).encode()


def _escaped(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in line)


@contextmanager
def locked(path: str | Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of `path` during the block, so that only one process at a time reads and replaces it.

    The lock file `.<name>.lock` beside it stays. Raises UserError after LOCK_SECONDS of waiting, or at once.
    """
    from filelock import FileLock, Timeout  # imported here: worker processes need no lock

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        with FileLock(lock, timeout=LOCK_SECONDS if wait else 0):
            yield
    except Timeout:
        raise UserError(
            f"{path}: another process has held {lock.name} beside it for {LOCK_SECONDS} s; wait until that "
            "process ends, or stop it, then run the command again"
        ) from None


def remove_temp(folder: str | Path, keep: Container[str] = ()) -> None:
    """Remove the temporary files that a killed run left in `folder` (not in its sub-folders).

    keep: names of files to keep.
    """
    for leftover in Path(folder).glob(".*.partial"):
        if leftover.name in keep:
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
