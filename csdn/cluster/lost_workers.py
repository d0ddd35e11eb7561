"""Says that workers are lost as soon as Ray Train knows it; until they work again, minutes may pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray.train


class LostWorkers(ray.train.UserCallback):
    """Lives in Ray Train's controller; puts a sentence on the board whenever workers end early."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        self.board.note.remote(sentence(worker_exceptions))


def sentence(errors: Mapping[int, Exception]) -> str:
    """errors: by the worker's rank. As in "lost worker 1 (OutOfMemoryError): back to the last checkpoint"."""
    workers = ", ".join(f"{rank} ({type(errors[rank]).__name__})" for rank in sorted(errors))
    return f"lost worker {workers}: back to the last checkpoint"
