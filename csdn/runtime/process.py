"""A stage as a process: exit codes, errors as text, the end of its parent, proxies, cores."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from csdn.runtime.errors import Diverged, UserError, explain_os_error, is_unavailable

_PR_SET_PDEATHSIG = 1
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Exit codes of sysexits.h; a retraining that started the stage reads them.
EX_TEMPFAIL = 75  # a service did not respond: the same command may succeed later
EX_DATAERR = 65  # training diverged: the same command would diverge again


def run_stage(main: Callable[[], None], stage: str, reduce: str = "") -> None:
    """Run a stage's `main`; on an error print it and exit with `_code`, on Ctrl-C with 130.

    Only a defect of the program shows a traceback. reduce: the parameters to reduce if memory runs out.
    """
    reach_loopback_directly()
    try:
        set_parent_death_signal()
        main()
    except UserError as error:
        _exit(_code(error), f"error: {error}")
    except KeyboardInterrupt as interrupt:
        _exit(130, f"\nstopped. Finished stages are kept; {_kept(stage, interrupt)}")
    except Exception as error:
        fault = explain_os_error(error, reduce)
        if fault is None:
            raise
        _exit(1, f"error: {fault}\nFinished stages are kept; {_kept(stage, error)}")


def _code(error: UserError) -> int:
    if is_unavailable(error):
        return EX_TEMPFAIL
    return EX_DATAERR if isinstance(error, Diverged) else 1


def _exit(code: int, text: str) -> NoReturn:
    print(text, file=sys.stderr)
    sys.exit(code)


def _kept(stage: str, error: BaseException) -> str:
    """The sentence that says from where a stage that ended early continues.

    csdn.data.state adds a note to the error where there is a checkpoint.
    """
    if stage == "ingest":
        return "so are the drops and shards that ingest has finished: run the same command again to continue."
    nothing = f"{stage} had saved nothing in this run: run the same command again"
    return f"{getattr(error, '__notes__', [nothing])[-1]}."


@contextmanager
def gc_paused() -> Iterator[None]:
    """Import modules without garbage collection, and exclude them from later collections.

    Modules live until the process ends. Without this, Python collects hundreds of times while torch is
    imported, and once more at the end of the process.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def set_parent_death_signal(parent: int | None = None) -> None:
    """Have Linux kill this process when its parent dies, so that an orphan never writes beside a new run.

    parent: its process id, if the caller knows it; then a death before this call is detected too.
    """
    if sys.platform != "linux":
        return
    parent = parent or os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent or _left_by_dvc():  # it died before prctl took effect
        os.kill(os.getpid(), signal.SIGKILL)


def _left_by_dvc() -> bool:
    """Whether DVC died while this stage was starting; a stage and its DVC share a process group."""
    try:
        return "DVC_STAGE" in os.environ and os.getpgid(os.getppid()) != os.getpgrp()
    except ProcessLookupError:  # the parent ended between the two calls
        return True


def reach_loopback_directly() -> None:
    """Exclude the loopback addresses from http_proxy, in this process and in those it starts.

    A proxy would look for these servers on its own machine.
    """
    for name in ("no_proxy", "NO_PROXY"):  # some programs read one, some the other
        hosts = [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]
        if "*" not in hosts:
            os.environ[name] = ",".join(dict.fromkeys([*hosts, *LOOPBACK]))


@contextmanager
def quiet_tracker() -> Iterator[None]:
    """Around a pool of spawned processes: suppress the resource tracker's warning if this process is killed.

    Python's resource tracker, a separate process, then removes the pool's semaphores and warns of a leak,
    though nothing leaks. It reads its warning filter from the environment in which it is started.
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
    """Cores that this process may use; in a container often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
