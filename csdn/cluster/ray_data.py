"""Ray Data sets: ordered tasks, tasks that read images for a network, and the training plan in chunks.

The tasks do not import torch, so that a new task process is ready within a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.data

from csdn.data.batch import VIEWS, TestBatchReader
from csdn.runtime.errors import UserError, without_cause

if TYPE_CHECKING:
    from csdn.data.batch import TrainBatchReader
    from csdn.data.loader import TrainSource
    from csdn.data.sampler import BatchPlan, EpochPlan


Block = dict[str, np.ndarray]

# ---- tasks whose results arrive in order


def in_order(count: int, task: Callable[[int], Block]) -> ray.data.Dataset:
    """One block for each number below `count`, in order: `task(number)`, or its error (see `checked`)."""
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
        except UserError as error:  # returned, because Ray would add a traceback, and retry the task
            return {"failure": np.array([without_cause(error)])}


def failed(block: Block) -> bool:
    return "failure" in block


def checked(block: Block) -> Any:
    """The block; raises the UserError of its task, if there was one."""
    if failed(block):
        raise block["failure"][0]
    return block


# ---- images for feature extraction


class ReadImages:
    """Task n reads the images of batch n: `pixels` uint8 [1, B, 3, H, W] and `modality` [1].

    batches: (indices [B], modality) of each batch.
    """

    def __init__(self, reader: TestBatchReader, batches: list[tuple[np.ndarray, str]]) -> None:
        self.reader, self.batches = reader, batches

    def __call__(self, number: int) -> Block:
        indices, modality = self.batches[number]
        return {"pixels": self.reader(indices)[None], "modality": np.array([modality])}


# ---- a chunk of the training plan

COLUMNS = ("step", "rank", "pixels", "boxes", "channels")
# A data set takes a second to start and a task some 30 ms: these numbers keep both shares small.
TASKS_PER_CHUNK = 2_000
STEPS_PER_TASK = 16
# Pixels in a task's output. Ray Data splits an output of 192 MiB (1.5 times its target) and sends the parts
# to different workers; a single row is never split, however large.
BYTES_PER_TASK = 128 * 2**20
# Blocks (a block is a task's output) in the object store for each worker: the memory of the loader. Ray also
# counts the blocks that running tasks will make: with half as many only one task runs at a time.
BLOCKS_STORED = 8


def steps_per_task(source: TrainSource, size: int) -> int:
    """Steps of the plan that a task reads for one worker of `size`: BYTES_PER_TASK of them, at least one."""
    return min(STEPS_PER_TASK, max(1, BYTES_PER_TASK // _step_bytes(source, size)))


def _step_bytes(source: TrainSource, size: int) -> int:
    """Pixels of a step of the plan, for one worker of `size`."""
    return len(VIEWS) * (source.people * source.images // size) * 3 * math.prod(source.image_size)


def block_bytes(source: TrainSource, size: int) -> int:
    """Pixels of a block, for one worker of `size`."""
    return steps_per_task(source, size) * _step_bytes(source, size)


def chunk_length(source: TrainSource, size: int) -> int:
    """Steps of the plan in a chunk for `size` workers."""
    return max(1, TASKS_PER_CHUNK // size) * steps_per_task(source, size)


class PlanChunk:
    """Steps `first` to `last` of the plan, counted over all epochs, each split over `size` workers."""

    def __init__(self, source: TrainSource, first: int, last: int, size: int) -> None:
        self.first, self.last, self.size = first, last, size
        self.steps_per_task = steps_per_task(source, size)
        self.steps_per_epoch = source.steps_per_epoch
        epochs = range(first // self.steps_per_epoch, (last - 1) // self.steps_per_epoch + 1)
        self._plans: dict[int, EpochPlan] = {epoch: source.plan(epoch) for epoch in epochs}

    def batch(self, step: int, rank: int) -> BatchPlan:
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        return self._plans[epoch].slice(rank, self.size)[step_of_epoch]


def chunk_dataset(chunk: PlanChunk, source: TrainSource) -> ray.data.Dataset:
    """Blocks of up to `steps_per_task` steps for one worker each; the workers take turns.

    COLUMNS: the step and the worker's rank, and the views of csdn.data.batch.RowViews.
    """
    tasks = -(-(chunk.last - chunk.first) // chunk.steps_per_task) * chunk.size
    dataset = in_order(tasks, _ReadSteps(chunk, source.rows))
    options = dataset.context.execution_options
    options.resource_limits = options.resource_limits.copy(
        object_store_memory=BLOCKS_STORED * chunk.size * block_bytes(source, chunk.size)
    )
    return dataset


class _ReadSteps:
    """Task n reads the views of its steps for one worker."""

    def __init__(self, chunk: PlanChunk, reader: TrainBatchReader) -> None:
        self.chunk, self.reader = chunk, reader

    def __call__(self, number: int) -> Block:
        part, rank = divmod(number, self.chunk.size)
        first = self.chunk.first + part * self.chunk.steps_per_task
        steps = range(first, min(first + self.chunk.steps_per_task, self.chunk.last))
        views = [self.reader(self.chunk.batch(step, rank)) for step in steps]
        columns = (np.stack([getattr(view, name) for view in views]) for name in COLUMNS[2:])
        return dict(zip(COLUMNS, (np.array(steps), np.full(len(steps), rank), *columns), strict=True))
