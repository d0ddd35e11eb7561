"""A process that ends the local Ray instance of a run when the run ends, even by SIGKILL.

Some of Ray's servers detect the death of the run only after a minute. Every process of the instance inherits
a mark in its environment; the run itself started without it. The guard kills the marked processes and removes
the temporary folder that was made for the instance. Linux only, as all of csdn.cluster.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "CSDN_RAY_RUN"


def marks(value: str) -> dict[str, str]:
    """The entries in the environment of a run's processes.

    SPT_NOENV keeps Ray's agents from overwriting their environment with their process title.
    """
    return {MARK: value, "SPT_NOENV": "1"}


@contextmanager
def guarded(folder: str | None = None) -> Iterator[None]:
    """Processes that the block starts end with the block, or at the latest with this process.

    folder: Ray's temporary folder, removed at the end.
    """
    entries = marks(str(uuid.uuid4())) | ({"RAY_TMPDIR": folder} if folder else {})
    before = {name: os.environ.get(name) for name in entries}
    command = [sys.executable, "-I", __file__, entries[MARK], *([folder] if folder else [])]
    # In its own session, so that killing the process group of this run does not kill the guard.
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    os.environ |= entries  # after the guard has started, so that it does not carry the mark itself
    try:
        yield
    finally:
        guard.communicate()  # closes its standard input; it then ends the remaining processes
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def end_marked(value: str) -> None:
    """Kill every process with this mark, and those that they start meanwhile."""
    while handles := marked(value):
        for handle in handles:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
        time.sleep(0.05)


def marked(value: str, name: str = MARK) -> list[int]:
    """Handles (pidfd) of the running processes whose environment has `name` with this value."""
    entry = f"{name}={value}".encode()
    handles = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                handles.append(os.pidfd_open(int(folder.name)))
    return handles


if __name__ == "__main__":
    sys.stdin.read()  # returns when the run ends
    end_marked(sys.argv[1])
    for folder in sys.argv[2:]:
        shutil.rmtree(folder, ignore_errors=True)
