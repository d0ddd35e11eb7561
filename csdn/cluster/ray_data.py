"""Ray Data sets: ordered tasks, tasks that read images for a network, and the training plan in chunks.

The tasks do not import torch, so that a new task process is ready within a second.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.data

from csdn.data.batch import TestBatchReader
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


@lru_cache(maxsize=1)
def reused_array(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array for the output of a task, the same one for all tasks of a process.

    Allocating new pages takes longer than filling them. Ray copies a block before the next task begins.
    """
    return np.empty(shape, dtype)


# ---- images for feature extraction


class ReadImages:
    """Task n reads the images of batch n: `images` float32 [1, B, 3, H, W] and `modality` [1].

    batches: (indices [B], modality) of each batch.
    """

    def __init__(self, reader: TestBatchReader, batches: list[tuple[np.ndarray, str]]) -> None:
        self.reader, self.batches = reader, batches

    def __call__(self, number: int) -> Block:
        indices, modality = self.batches[number]
        images = reused_array(self.reader.shape, np.float32)[: len(indices)]
        self.reader.fill(indices, images)
        return {"images": images[None], "modality": np.array([modality])}


# ---- a chunk of the training plan

COLUMNS = ("step", "rank", "pixels")
# A data set takes a second to start and a task some 30 ms: these numbers keep both shares small.
TASKS_PER_CHUNK = 2_000
STEPS_PER_TASK = 16
# Pixels in a task's output. Ray Data splits an output of 192 MiB (1.5 times its target) and sends the parts
# to different workers; a single row is never split, however large.
BYTES_PER_TASK = 128 * 2**20
# Blocks (a block is a task's output) in the object store for each worker: the memory of the loader. Ray also
# counts the blocks that running tasks will make: with half as many only one task runs at a time.
BLOCKS_STORED = 8


def steps_per_task(reader: TrainBatchReader, size: int) -> int:
    """Steps of the plan that a task reads for one worker of `size`: BYTES_PER_TASK of them, at least one."""
    return min(STEPS_PER_TASK, max(1, BYTES_PER_TASK // _step_bytes(reader, size)))


def _step_bytes(reader: TrainBatchReader, size: int) -> int:
    """Pixels of a step of the plan, for one worker of `size`."""
    _, count, channels, height, width = reader.shape
    return 2 * (count // size) * channels * height * width


def block_bytes(reader: TrainBatchReader, size: int) -> int:
    """Pixels of a block, for one worker of `size`."""
    return steps_per_task(reader, size) * _step_bytes(reader, size)


def chunk_length(reader: TrainBatchReader, size: int) -> int:
    """Steps of the plan in a chunk for `size` workers."""
    return max(1, TASKS_PER_CHUNK // size) * steps_per_task(reader, size)


class PlanChunk:
    """Steps `first` to `last` of the plan, counted over all epochs, each split over `size` workers."""

    def __init__(self, source: TrainSource, first: int, last: int, size: int) -> None:
        self.first, self.last, self.size = first, last, size
        self.steps_per_task = steps_per_task(source.rows, size)
        self.steps_per_epoch = source.steps_per_epoch
        epochs = range(first // self.steps_per_epoch, (last - 1) // self.steps_per_epoch + 1)
        self._plans: dict[int, EpochPlan] = {epoch: source.plan(epoch) for epoch in epochs}

    def batch(self, step: int, rank: int) -> BatchPlan:
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        return self._plans[epoch].slice(rank, self.size)[step_of_epoch]


def chunk_dataset(chunk: PlanChunk, reader: TrainBatchReader) -> ray.data.Dataset:
    """Blocks of up to `steps_per_task` steps for one worker each; the workers take turns.

    Columns `step`, `rank`, `pixels` uint8 [2 modalities, n, H, W, 3].
    """
    tasks = -(-(chunk.last - chunk.first) // chunk.steps_per_task) * chunk.size
    dataset = in_order(tasks, _ReadSteps(chunk, reader))
    options = dataset.context.execution_options
    options.resource_limits = options.resource_limits.copy(
        object_store_memory=BLOCKS_STORED * chunk.size * block_bytes(reader, chunk.size)
    )
    return dataset


class _ReadSteps:
    """Task n reads the pixels of its steps for one worker."""

    def __init__(self, chunk: PlanChunk, reader: TrainBatchReader) -> None:
        self.chunk, self.reader = chunk, reader

    def __call__(self, number: int) -> Block:
        chunk = self.chunk
        part, rank = divmod(number, chunk.size)
        first = chunk.first + part * chunk.steps_per_task
        steps = range(first, min(first + chunk.steps_per_task, chunk.last))
        _, count, channels, *image = self.reader.shape
        shape = (chunk.steps_per_task, 2, count // chunk.size, *image, channels)
        pixels = reused_array(shape, np.uint8)[: len(steps)]
        for step, out in zip(steps, pixels, strict=True):
            for images, out_of_modality in zip(self.reader.read(chunk.batch(step, rank)), out, strict=True):
                np.stack(images, out=out_of_modality)
        return dict(zip(COLUMNS, (np.array(steps), np.full(len(steps), rank), pixels), strict=True))
