"""Tasks of Ray Data whose results come in order, and what a mistake of the user in one of them becomes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import ray
import ray.data

from csdn.errors import UserError

Block = dict[str, np.ndarray]


@lru_cache(maxsize=1)
def own_memory(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array for a task's output, one and the same for all tasks of a process.

    Fresh pages cost more than filling them; Ray has copied a task's block before the next task begins.
    """
    return np.empty(shape, dtype)


def in_order(count: int, task: Callable[[int], Block]) -> ray.data.Dataset:
    """A block for each number below `count`, in order: what `task` makes of it, or a failure (`checked`)."""
    numbers = ray.data.range(count, override_num_blocks=max(1, count))
    dataset = numbers.map_batches(_Task(task), batch_size=1)
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    return dataset


class _Task:
    def __init__(self, task: Callable[[int], Block]) -> None:
        self.task = task

    def __call__(self, block: Block) -> Block:
        try:
            return self.task(int(block["id"][0]))
        except UserError as error:  # as text: Ray would wrap the error in a traceback, and try again
            return {"failure": np.array([str(error)])}


def failed(block: Block) -> bool:
    return "failure" in block


def checked(block: Block) -> Any:
    """The block; raises the UserError that its task met."""
    if failed(block):
        raise UserError(str(block["failure"][0]))
    return block
