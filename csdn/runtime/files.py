"""Outputs that are whole or not there: written under a temporary name, flushed, then renamed.

A killed run leaves at most `.<name>.partial` beside the output; `sweep` removes such leftovers.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csdn.runtime.errors import UserError
from csdn.runtime.sanitize import as_cell, from_cell

LOCK_SECONDS = 60  # a lock is held while a small file is read and written, never while data is read


def temp_path(path: Path) -> Path:
    """The temporary name of an output, beside it (a rename must not cross file systems)."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path to write; it becomes `path` when the block ends, and vanishes when it fails."""
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
    """Yields an empty temporary folder to fill; it becomes `path` when the block ends without an error."""
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
    """Makes an OSError of the block name `path`: one of a full disk names no file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # else Python would show the name in place of the text
            error.filename = error.filename or str(path)
        raise


def rename_flushed(temporary: Path, path: Path) -> None:
    """Rename once the bytes are on disk, so that a power cut cannot leave an empty file under the name."""
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Have what was written to a file, or the names of a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Replace a file with `value` as `as_json` has it."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(as_json(value))


def as_json(value: Any) -> bytes:
    """`value` as JSON, keys sorted and one entry a line: the same value gives the same bytes.

    What does not print is escaped, as JSON has it: people read these files in terminals, and with `git diff`.
    Raises ValueError for NaN and infinity, which JSON does not have.
    """
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    lines = text.split("\n")
    return "".join(f"{line if line.isprintable() else _escaped(line)}\n" for line in lines).encode()


def _escaped(line: str) -> str:
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in line)


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Nobody else who locks `path` reads, changes and writes it during the block.

    The lock is the file `.<name>.lock` beside it, which stays. Raises UserError where it cannot be had.
    """
    from filelock import FileLock, Timeout  # imported here: worker processes lock nothing

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        with FileLock(lock, timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise UserError(
            f"{path}: another process has held {lock.name} beside it for {LOCK_SECONDS} s; wait for that "
            "process to end, or stop it, then run the command again"
        ) from None


def write_csv(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = (), digits: int | None = None
) -> None:
    """Rows as CSV, for people and their spreadsheets: texts as `as_cell` has them, numbers as they are.

    columns: of a table without rows; digits: significant ones of floats, by default all.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = list(rows[0]) if rows else columns
        writer.writerow(columns)
        writer.writerows([_cell(row[column], digits) for column in columns] for row in rows)


def _cell(value: Any, digits: int | None) -> Any:
    if isinstance(value, float) and digits:
        return f"{value:.{digits}g}"
    return as_cell(value) if isinstance(value, str) else value


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file of `write_csv`, texts as they were, numbers as texts."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: from_cell(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def remove_temp(folder: str | Path, keep: Container[str] = ()) -> None:
    """Remove what a killed run left under temporary names in `folder` (not in its sub-folders).

    keep: names of files that are still wanted.
    """
    for leftover in Path(folder).glob(".*.partial"):
        if leftover.name in keep:
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
