"""One run at a time in a workspace: a lock that dies with its holder, and a mark for who came meanwhile.

.runs/lock         held for as long as something works in the workspace; its text says what, and since when
.runs/look-again   somebody asked for a look at the data while the workspace was busy
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from csdn.runtime.documents import read_json
from csdn.runtime.errors import UserError

RUNS = ".runs"


class WorkspaceLocked(UserError):
    """Something else works in the workspace. Never tried again by itself: it may take hours."""


@contextmanager
def workspace_lock(workspace: str | Path, what: str) -> Iterator[None]:
    """Have the workspace for oneself for the block; `what` is shown to others. Raises Busy at once."""
    path = Path(workspace).resolve() / RUNS / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkspaceLocked(_busy(path)) from None
        holder = {"what": what, "pid": os.getpid(), "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"}
        _write(file, json.dumps(holder))
        try:
            yield
        finally:
            _write(file, "")


def when_asked(workspace: str | Path, what: str, look: Callable[[], None]) -> None:
    """Call `look` under the lock, and again for as long as others asked for it meanwhile.

    Raises Busy where the workspace is busy; whoever holds it through this function then looks again.
    What `look` raises is passed on, and counts as a look.
    """
    mark = Path(workspace).resolve() / RUNS / "look-again"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()  # before the lock is tried: its holder may be about to let go
    looked = False
    while mark.exists():
        try:
            with workspace_lock(workspace, what):
                while _take(mark):
                    looked = True
                    look()
        except WorkspaceLocked:
            if not looked:
                raise
            return  # who has the lock now began after our last look


def asked(workspace: str | Path) -> bool:
    """Whether somebody asked for a look and had none yet."""
    return (Path(workspace) / RUNS / "look-again").exists()


def _take(mark: Path) -> bool:
    with suppress(FileNotFoundError):
        mark.unlink()
        return True
    return False


def _write(file: IO[str], text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()


def _busy(path: Path) -> str:
    workspace = path.parents[1]
    advice = "wait for it to end, or stop it"
    try:
        holder = read_json(path)
        who = f"{holder['what']}, process {holder['pid']}, since {holder['since']}"
    except (UserError, LookupError, TypeError):  # it has the lock, and is about to write who it is
        return f"{workspace}: another process works here; {advice}"
    return f"{workspace}: busy: {who}; {advice}"
