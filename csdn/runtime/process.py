"""A stage as a process: exit codes, errors as text, the end of its parent, proxies, cores."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.context import BaseContext
from typing import NoReturn

from csdn.runtime.errors import UserError, explain_os_error

_PR_SET_PDEATHSIG = 1
SPIN_COUNT = "4000"  # turns of libgomp, some microseconds
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def run_stage(main: Callable[[], None], stage: str, reduce: str = "") -> None:
    """Run a stage's `main`; on an error log it and exit with 1, on Ctrl-C with 130.

    Only a defect of the program shows a traceback. reduce: the parameters to reduce if memory runs out.
    """
    reach_loopback_directly()
    spin_briefly()
    try:
        set_parent_death_signal()
        main()
    except UserError as error:
        exit_with_error(error)
    except KeyboardInterrupt as interrupt:
        print(f"\nstopped. Finished stages are kept; {_kept(stage, interrupt)}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        fault = explain_os_error(error, reduce)
        if fault is None:
            raise
        exit_with_error(f"{fault}\nFinished stages are kept; {_kept(stage, error)}")


def exit_with_error(error: UserError | str) -> NoReturn:
    """Log the error, as JSON if CSDN_LOG=json, and end this process."""
    from csdn.runtime.console import log_error  # here, as csdn.model works without rich

    log_error(error)
    sys.exit(1)


def _kept(stage: str, error: BaseException) -> str:
    """The sentence that says from where a stage that ended early continues.

    csdn.data.checkpoint_store adds a note to the error where there is a checkpoint.
    """
    if stage == "ingest":
        return "so are the drops and shards that ingest has finished: run the same command again to continue."
    nothing = f"{stage} had saved nothing in this run: run the same command again"
    return f"{getattr(error, '__notes__', [nothing])[-1]}."


def with_parent(*command: str) -> list[str]:
    """A command that ends when this process, which starts it, ends, even while it starts."""
    return [sys.executable, "-P", __file__, str(os.getpid()), *command]


def set_parent_death_signal(parent: int | None = None) -> None:
    """Have Linux kill this process when its parent dies, so that an orphan never writes beside a new run.

    parent: its process id, if it is known; then a death before this call is detected too.
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


# Processes that a stage starts for a part of its work.


def fork_server(*modules: str) -> BaseContext:
    """Starts processes by a fork of a process that has no threads and has imported `modules`, once for all.

    A fork of this process would not be safe: the clients of object stores, and torch, have threads. The first
    act of such a process is `follow_parent`.
    """
    # If this process is killed, Python's resource tracker would warn of a leak, though nothing leaks.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context


def follow_parent(environment: Mapping[str, str]) -> None:
    """Take the environment of the process that has asked for this one, and end when that ends.

    The fork server may have an older environment, and lives as long as any process that it has forked, so
    that nothing else would end a process whose stage was killed.
    """
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def reach_loopback_directly() -> None:
    """Exclude the loopback addresses from http_proxy, in this process and in those it starts.

    A proxy would look for these servers on its own machine.
    """
    for name in ("no_proxy", "NO_PROXY"):  # some programs read one, some the other
        hosts = [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]
        if "*" not in hosts:
            os.environ[name] = ",".join(dict.fromkeys([*hosts, *LOOPBACK]))


def spin_briefly() -> None:
    """Let OpenMP's threads sleep after a brief wait for each other; call this before torch is imported.

    By default they spin for about a millisecond, which takes the cores from whatever else runs, and from each
    other. Beside two busy processes on two cores training is 2 to 7 times as fast as by default, alone 0.9
    times (benchmarks/threads.py). Whoever has set OMP_WAIT_POLICY or GOMP_SPINCOUNT keeps that.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def available_cores() -> int:
    """Cores that this process may use; in a container often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    set_parent_death_signal(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
