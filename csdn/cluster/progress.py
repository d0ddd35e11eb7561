"""A Ray actor that passes progress, notes and errors of the workers to the process that waits for them.

The actor's process imports neither torch nor Ray Train, so that it is ready within a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from csdn.runtime.errors import UserError

POLL_SECONDS = 0.5


class ProgressActor:
    """Runs in its own process, on the node of the waiting process."""

    def __init__(self) -> None:
        self._progress: tuple[Any, ...] | None = None
        self._notes: list[str] = []
        self._failure: UserError | None = None

    def put(self, done: int, total: int, values: Mapping[str, float]) -> None:
        self._progress = (done, total, dict(values))

    def note(self, text: str) -> None:
        """Add a text for the user. After `fail` nothing is added: the error itself is shown."""
        if not self._failure:
            self._notes.append(text)

    def state(self) -> tuple[tuple[Any, ...] | None, list[str]]:
        """The latest (done, total, values), or None, and all notes so far."""
        return self._progress, self._notes

    def fail(self, error: UserError) -> None:
        """Keep the first UserError of the workers; a retry would raise it again."""
        self._failure = self._failure or error

    def failure(self) -> UserError | None:
        return self._failure


@contextmanager
def progress_actor(report: Callable[..., None]) -> Iterator[Any]:
    """Yield the handle of a new actor; during the block, `report` is called with what the actor receives."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Not soft: if the head node had no cores, Ray would choose any node, and lose the actor with that node.
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    placed = ray.remote(num_cpus=0, scheduling_strategy=this_node)  # type: ignore[call-overload]  # Ray's types lack it
    actor = placed(ProgressActor).remote()
    ended = threading.Event()
    poller = threading.Thread(target=_poll, args=(actor, report, ended), daemon=True)
    poller.start()
    try:
        yield actor
    finally:
        ended.set()
        poller.join()


def _poll(actor: Any, report: Callable[..., None], ended: threading.Event) -> None:
    import ray

    shown, notes_shown = None, 0
    last = False
    while not last:
        last = ended.wait(POLL_SECONDS)  # poll once more after the end
        try:
            progress, notes = ray.get(actor.state.remote(), timeout=10)
        except ray.exceptions.RayError:  # the cluster is busy or gone; `trainer.fit` reports it
            continue
        for note in notes[notes_shown:]:
            report(*(shown or (0, None, None)), note)
        if progress != shown:
            report(*progress)
        shown, notes_shown = progress, len(notes)
