"""One process at a time works in a workspace; a scan that was requested meanwhile is not lost.

.runs/lock             locked while something works in the workspace; its text says what, and since when. The
                       operating system releases it if the holder is killed
.runs/scan-requested   exists if a scan for new data was requested and has not begun
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from csdn.runtime.documents import read_json
from csdn.runtime.errors import UserError

RUNS = ".runs"


class WorkspaceLocked(UserError):
    """Another process works in the workspace. Not retried automatically, as that may take hours."""


@contextmanager
def workspace_lock(workspace: str | Path, what: str) -> Iterator[None]:
    """Hold the workspace's lock for the block; `what` is shown to others. Raises WorkspaceLocked at once."""
    path = Path(workspace).resolve() / RUNS / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(path).acquire(blocking=False)
    except Timeout:
        raise WorkspaceLocked(_locked_message(path)) from None
    with lock:
        holder = {"what": what, "pid": os.getpid(), "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"}
        path.write_text(json.dumps(holder), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text("")


def scan_on_request(workspace: str | Path, what: str, scan: Callable[[], None]) -> None:
    """Request a scan, and run it under the lock; repeat while others have requested one meanwhile.

    Raises WorkspaceLocked if the workspace is locked; if its holder is this function, it then scans again. An
    error of `scan` is passed on, and the request counts as served.
    """
    request = _request_file(workspace)
    request.parent.mkdir(parents=True, exist_ok=True)
    request.touch()  # before the lock is tried: its holder may be about to release it
    scanned = False
    while request.exists():
        try:
            with workspace_lock(workspace, what):
                while _remove(request):
                    scanned = True
                    scan()
        except WorkspaceLocked:
            if not scanned:
                raise
            return  # the present holder acquired the lock after our last scan


def scan_requested(workspace: str | Path) -> bool:
    """Whether a scan was requested and has not begun."""
    return _request_file(workspace).exists()


def _request_file(workspace: str | Path) -> Path:
    return Path(workspace).resolve() / RUNS / "scan-requested"


def _remove(request: Path) -> bool:
    """Whether the file was there."""
    try:
        request.unlink()
    except FileNotFoundError:
        return False
    return True


def _locked_message(path: Path) -> str:
    workspace = path.parents[1]
    advice = "wait for it to end, or stop it"
    try:
        holder = read_json(path)
        who = f"{holder['what']}, process {holder['pid']}, since {holder['since']}"
    except (UserError, LookupError, TypeError):  # the holder has not yet written who it is
        return f"{workspace}: another process works here; {advice}"
    return f"{workspace}: busy: {who}; {advice}"
