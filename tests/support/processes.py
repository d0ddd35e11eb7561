"""Processes that a test has started, also by way of others: they are found by a mark in their environment."""

from __future__ import annotations

from contextlib import suppress

import psutil

MARK = "CSDN_TEST"


def marks(value: str) -> dict[str, str]:
    """The entries that mark an environment.

    SPT_NOENV keeps Ray's agents from overwriting their environment with their process title.
    """
    return {MARK: value, "SPT_NOENV": "1"}


def marked(value: str) -> list[psutil.Process]:
    """The running processes whose environment has the mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == value:
                found.append(process)
    return found


def end_marked(value: str) -> None:
    """Kill every process with the mark, and those that they start meanwhile."""
    while processes := marked(value):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes)


def command_of(process: psutil.Process) -> str:
    """Its command; empty when it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()
    return ""


def descendants() -> list[psutil.Process]:
    """The processes that this one has started, and theirs; Ray's local instance is among them."""
    return psutil.Process().children(recursive=True)
