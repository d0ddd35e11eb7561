"""Tasks of Ray Data whose results come in order, and what a mistake of the user in one of them becomes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.data

from csdn.data.batch import TestBatchReader
from csdn.runtime.errors import UserError

if TYPE_CHECKING:
    from csdn.data.batch import TrainBatchReader
    from csdn.data.loader import TrainSource
    from csdn.data.sampler import BatchPlan, EpochPlan


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


# What a task of Ray Data does that makes a batch of images for a network. It need not load torch.


class ReadImages:
    """Task n makes the images of step n: `images` float32 [1, B, 3, H, W] and `modality` [1].

    steps: (ordinals [B], modality) of each batch.
    """

    def __init__(self, rows: TestBatchReader, steps: list[tuple[np.ndarray, str]]) -> None:
        self.rows, self.steps = rows, steps

    def __call__(self, number: int) -> Block:
        ordinals, modality = self.steps[number]
        images = own_memory(self.rows.shape, np.float32)[: len(ordinals)]
        self.rows.fill(ordinals, images)
        return {"images": images[None], "modality": np.array([modality])}


# A stretch of the plan as a data set of Ray: what the tasks that read its images know.
#
# They need not load torch: a task's process is ready in a second.


COLUMNS = ("step", "rank", "pixels")
# Starting a data set costs a second, a task some 30 ms, whose shares these make small.
TASKS_OF_STRETCH = 2_000
ROWS_OF_TASK = 16
# Of pixels: Ray Data cuts a task's output of 192 MiB (1.5 times its target) and deals the parts to different
# workers. A single row is never cut, however large.
BYTES_OF_TASK = 128 * 2**20
# Blocks, a task's output, of each worker that may lie in the object store: the feed's memory. Ray counts also
# those that running tasks will make: with half as many only one task runs at a time.
BLOCKS_STORED = 8


def rows_of_task(rows: TrainBatchReader, size: int) -> int:
    """Rows of the plan that a task reads for one worker of `size`: what BYTES_OF_TASK hold, one at least."""
    return min(ROWS_OF_TASK, max(1, BYTES_OF_TASK // row_bytes(rows, size)))


def row_bytes(rows: TrainBatchReader, size: int) -> int:
    """Pixels of a row of the plan, for one worker of `size`."""
    _, count, channels, height, width = rows.shape
    return 2 * (count // size) * channels * height * width


def block_bytes(rows: TrainBatchReader, size: int) -> int:
    """Pixels of a block, a task's output, for one worker of `size`."""
    return rows_of_task(rows, size) * row_bytes(rows, size)


def chunk_length(rows: TrainBatchReader, size: int) -> int:
    """Rows of the plan that a stretch for `size` workers has."""
    return max(1, TASKS_OF_STRETCH // size) * rows_of_task(rows, size)


class PlanChunk:
    """Rows `first` to `last` of the plans of all epochs laid end to end, each split over `size` workers."""

    def __init__(self, source: TrainSource, first: int, last: int, size: int) -> None:
        self.first, self.last, self.size = first, last, size
        self.rows_of_task = rows_of_task(source.rows, size)
        self.steps_per_epoch = source.steps_per_epoch
        epochs = range(first // self.steps_per_epoch, (last - 1) // self.steps_per_epoch + 1)
        self._plans: dict[int, EpochPlan] = {epoch: source.plan(epoch) for epoch in epochs}

    def row(self, step: int, rank: int) -> BatchPlan:
        epoch, at = divmod(step, self.steps_per_epoch)
        return self._plans[epoch].slice(rank, self.size)[at]


def chunk_dataset(stretch: PlanChunk, rows: TrainBatchReader) -> ray.data.Dataset:
    """Blocks of up to `rows_of_task` rows of the plan, each of one worker, the workers in turn.

    Columns `step`, `rank`, `pixels` uint8 [2 modalities, n, H, W, 3].
    """
    tasks = -(-(stretch.last - stretch.first) // stretch.rows_of_task) * stretch.size
    dataset = in_order(tasks, _Read(stretch, rows))
    options = dataset.context.execution_options
    options.resource_limits = options.resource_limits.copy(
        object_store_memory=BLOCKS_STORED * stretch.size * block_bytes(rows, stretch.size)
    )
    return dataset


class _Read:
    """What a task does: its block."""

    def __init__(self, stretch: PlanChunk, rows: TrainBatchReader) -> None:
        self.stretch, self.rows = stretch, rows

    def __call__(self, number: int) -> Block:
        part, rank = divmod(number, self.stretch.size)
        first = self.stretch.first + part * self.stretch.rows_of_task
        steps = range(first, min(first + self.stretch.rows_of_task, self.stretch.last))
        _, count, channels, *image = self.rows.shape
        shape = (self.stretch.rows_of_task, 2, count // self.stretch.size, *image, channels)
        pixels = own_memory(shape, np.uint8)[: len(steps)]
        for step, images in zip(steps, pixels, strict=True):
            for read, out in zip(self.rows.read(self.stretch.row(step, rank)), images, strict=True):
                np.stack(read, out=out)
        return dict(zip(COLUMNS, (np.array(steps), np.full(len(steps), rank), pixels), strict=True))
