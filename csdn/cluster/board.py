"""What the process that waits for the workers is told: how far they are, who is lost, what ended them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from csdn.errors import UserError

SECONDS = 0.5  # between two looks at the board


class Board:
    """Lives in a process of its own (a Ray actor), beside the one that waits."""

    def __init__(self) -> None:
        self._progress: tuple[Any, ...] | None = None
        self._notes: list[str] = []
        self._failure: UserError | None = None

    def put(self, done: int, total: int, values: Mapping[str, float]) -> None:
        self._progress = (done, total, dict(values))

    def note(self, what: str) -> None:
        """Note that workers are lost, or will be; those that a mistake ends, as `fail` has it, are not."""
        if not self._failure:
            self._notes.append(what)

    def seen(self) -> tuple[tuple[Any, ...] | None, list[str]]:
        """The latest (done, total, values), or None; all that was noted so far."""
        return self._progress, self._notes

    def fail(self, error: UserError) -> None:
        """Note a UserError: another try would meet it again."""
        self._failure = self._failure or error

    def failure(self) -> UserError | None:
        return self._failure


@contextmanager
def watched_board(report: Callable[..., None]) -> Iterator[Any]:
    """The handle of a new board; while the block runs, `report` is called with what is put on it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Not soft: from a head without cores Ray would then take any node, and lose the board with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, report, ended), daemon=True)
    watcher.start()
    try:
        yield board
    finally:
        ended.set()
        watcher.join()


def _watch(board: Any, report: Callable[..., None], ended: threading.Event) -> None:
    import ray

    shown, told = None, 0
    last = False
    while not last:
        last = ended.wait(SECONDS)  # once more after the end
        try:
            found, notes = ray.get(board.seen.remote(), timeout=10)
        except ray.exceptions.RayError:  # the cluster is busy or gone: `fit` says so
            continue
        for sentence in notes[told:]:
            report(*(shown or (0, None, None)), sentence)
        if found != shown:
            report(*found)
        shown, told = found, len(notes)
