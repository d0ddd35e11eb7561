"""How a stage runs as a process: it dies with DVC, and shows a user's mistake as text."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from csdn.data.state import seconds_since_save
from csdn.runtime.errors import Diverged, UserError, explain_os_error, is_unavailable

_PR_SET_PDEATHSIG = 1
LOOPBACK = ("localhost", "127.0.0.1", "::1")
EX_TEMPFAIL = 75  # of sysexits.h: the same command may succeed later on
EX_DATAERR = 65  # of sysexits.h: training diverged, and would again


def run_stage(main: Callable[[], None], stage: str, lower: str = "") -> None:
    """Run a stage's `main`; exits with the text of what is wrong, by `_code`; 130 on Ctrl-C.

    Only a defect of the program shows a traceback. lower: the parameters to lower where memory runs out.
    """
    reach_loopback_directly()
    try:
        set_parent_death_signal()
        main()
    except UserError as error:
        _exit(_code(error), f"error: {error}")
    except KeyboardInterrupt:
        _exit(130, f"\nstopped. Finished stages are kept; {_kept(stage)}")
    except Exception as error:
        fault = explain_os_error(error, lower)
        if fault is None:
            raise
        _exit(1, f"error: {fault}\nFinished stages are kept; {_kept(stage)}")


def _code(error: UserError) -> int:
    """How a retraining that started the stage tells what ended it."""
    if is_unavailable(error):
        return EX_TEMPFAIL
    return EX_DATAERR if isinstance(error, Diverged) else 1


def _exit(code: int, text: str) -> NoReturn:
    print(text, file=sys.stderr)
    sys.exit(code)


def _kept(stage: str) -> str:
    """What a stage that ended early goes on from."""
    if stage == "ingest":
        return "so are the drops and shards that ingest has finished: run the same command again to go on."
    saved = seconds_since_save()
    if saved is None:
        return f"{stage} had saved nothing in this run: run the same command again."
    return f"so is what {stage} saved {saved:.0f} s ago: run the same command again to continue from there."


@contextmanager
def gc_paused() -> Iterator[None]:
    """Import what a process works with, out of the collector's sight.

    Modules stay until the end. It would look for garbage hundreds of times while torch's are loaded,
    and once more when the process ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def set_parent_death_signal(parent: int | None = None) -> None:
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


def reach_loopback_directly() -> None:
    """Have every client here, and in processes started from here, ask no proxy for servers of this machine.

    A proxy that the environment names (http_proxy) would look for them on its own machine.
    """
    for name in ("no_proxy", "NO_PROXY"):  # programs read the one or the other
        named = [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]
        if "*" not in named:
            os.environ[name] = ",".join(dict.fromkeys([*named, *LOOPBACK]))


@contextmanager
def quiet_tracker() -> Iterator[None]:
    """Around a pool of spawned processes: nothing is printed of its semaphores where this process is killed.

    Python's resource tracker, a process of its own, removes them then, and warns of a leak that there is not.
    It takes its filter of warnings from the environment in which it is started.
    """
    name, before = "PYTHONWARNINGS", os.environ.get("PYTHONWARNINGS")
    os.environ[name] = ",".join(filter(None, (before, "ignore:resource_tracker:UserWarning")))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def available_cores() -> int:
    """Cores that this process may use; a container often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
