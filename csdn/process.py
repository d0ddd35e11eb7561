"""How a stage runs as a process: it dies with DVC, and shows a user's mistake as text."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

from csdn.errors import UserError

_PR_SET_PDEATHSIG = 1


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's `main`; exits 1 with the message of a UserError, 130 on Ctrl-C."""
    try:
        die_with_parent()
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            "\nstopped. Finished stages are kept, and so is the last checkpoint of this one in .state/: "
            "run the same command again to continue.",
            file=sys.stderr,
        )
        sys.exit(130)


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux to end this process when its parent dies, so that an orphan never writes beside a new run.

    parent: its id, where the caller knows it, so that a death before this call is noticed too.
    """
    if sys.platform != "linux":
        return
    parent = parent or os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent or _left_by_dvc():  # it died before the request was heard
        os.kill(os.getpid(), signal.SIGKILL)


def _left_by_dvc() -> bool:
    """Whether this is a stage whose DVC died while it was starting: both are of one process group."""
    try:
        return "DVC_STAGE" in os.environ and os.getpgid(os.getppid()) != os.getpgrp()
    except ProcessLookupError:  # the parent ended between the two questions
        return True


def available_cores() -> int:
    """Cores that this process may use; a container often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
