"""A command run for as long as its caller lives: its lines streamed, its whole group ended with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from csdn.retraining import dvc_files
from csdn.safe import redacted

GUARD = Path(__file__).with_name("guard.py")
LAST_LINES = 15  # of a failed command, shown in its error
GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL


class CommandFailed(RuntimeError):
    """A command ended with a non-zero code; the message ends with its last lines, which are `lines`."""

    def __init__(self, command: Sequence[str], code: int, lines: Sequence[str]) -> None:
        super().__init__("\n".join([f"{' '.join(command)} ended with {_reason(code)}:", *lines]))
        self.lines = list(lines)


def run(
    command: Sequence[str],
    folder: Path,
    log: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run `command` in `folder`, handing each line of its output (both streams) to `log` as it comes.

    environment: what is set besides what this process has.

    The command gets a process group of its own. Whatever ends this call early, a cancelled run among them,
    ends the group; and should this process be killed, Linux kills the command (csdn.retraining.guard).
    Raises CommandFailed.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", str(GUARD), *command],
        cwd=folder,
        env=dvc_files.environment() | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    last: deque[str] = deque(maxlen=LAST_LINES)
    try:
        for line in process.stdout:
            if line.strip():
                last.append(redacted(line.rstrip()))
                log(last[-1])
        code = process.wait()
    except BaseException:  # a cancelled run arrives as one
        end_group(process)
        raise
    if code:
        raise CommandFailed(command, code, last)


def end_group(process: subprocess.Popen[str]) -> None:
    """End the group that `process` leads: SIGTERM, and SIGKILL for all who are left when it had its time."""
    _signal(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    _signal(process.pid, signal.SIGKILL)
    process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _reason(code: int) -> str:
    return f"exit code {code}" if code > 0 else signal.Signals(-code).name
