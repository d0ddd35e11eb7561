"""Ends this machine's own Ray instance together with the run that started it, however that ended.

Ray's servers notice such a death themselves, but some of them only after a minute. What a run started knows
its mark: an entry of the environment that every process of the instance inherits. The run itself, which
started without it, has none. A temporary folder that was made for the instance is removed at the end, too.
Linux, as all of csdn.cluster.
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
    """What the environment of a run's processes has.

    The second entry keeps the first: Ray's agents write their names over the memory of their environment.
    """
    return {MARK: value, "SPT_NOENV": "1"}


@contextmanager
def guarded(folder: str | None = None) -> Iterator[None]:
    """While the block runs, a process that bears this run's mark ends, at the latest, with this process.

    folder: removed then; Ray has it for its temporary one.
    """
    of_this_run = marks(str(uuid.uuid4())) | ({"RAY_TMPDIR": folder} if folder else {})
    before = {name: os.environ.get(name) for name in of_this_run}
    command = [sys.executable, "-I", __file__, of_this_run[MARK], *([folder] if folder else [])]
    # A group of its own: whoever kills this run's whole group leaves the guard to do its work.
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    os.environ |= of_this_run  # not before: the guard is none of those that it ends
    try:
        yield
    finally:
        guard.communicate()  # it hears the end of its input, and ends what is left
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def end_marked(value: str) -> None:
    """Kill every process with this mark, those too that they start meanwhile."""
    while handles := marked(value):
        for handle in handles:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
        time.sleep(0.05)


def marked(value: str, name: str = MARK) -> list[int]:
    """Handles (pidfd) of the living processes in whose environment `name` has this value."""
    entry = f"{name}={value}".encode()
    handles = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                handles.append(os.pidfd_open(int(folder.name)))
    return handles


if __name__ == "__main__":
    sys.stdin.read()  # ends when the run does
    end_marked(sys.argv[1])
    for folder in sys.argv[2:]:
        shutil.rmtree(folder, ignore_errors=True)
