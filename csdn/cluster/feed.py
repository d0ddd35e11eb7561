"""A plan executed by Ray Data: a task reads the images of one worker's part of a few rows.

The rows, the reading and the augmentation are those of csdn.data; only who runs them differs, so the tensors
are the DataLoader's bit for bit. Pixels travel, a sixth of the bytes of the views that the worker makes of
them. A data set of Ray is a stretch of the plan, from where the loop stands over as many epochs as it holds:
a static one would repeat its rows each epoch, and begin at row 0 after a failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train.collective
import torch
from ray.data.collate_fn import NumpyBatchCollateFn

from csdn.cluster.tasks import Block, checked, in_order
from csdn.data.batches import TrainBatch, train_batch
from csdn.data.feed import BATCHES_AHEAD, TrainSource
from csdn.data.plan import EpochPlan, PlanRow
from csdn.data.rows import TrainRows

# Starting a data set costs a second, a task some 30 ms, whose shares these make small.
TASKS_OF_STRETCH = 2_000
ROWS_OF_TASK = 8
# Blocks, a task's output, of each worker that may lie in the object store: the feed's memory.
BLOCKS_STORED = 4


class RayFeed:
    """A source's batches for worker `rank` of `size`, made by tasks of the connected Ray instance.

    All workers iterate over the same epochs from the same rows; the first starts what serves them all.
    """

    def __init__(self, source: TrainSource, epochs: int, rank: int = 0, size: int = 1) -> None:
        self.source, self.rank, self.size = source, rank, size
        self.steps_per_epoch = source.steps_per_epoch
        self.steps = epochs * self.steps_per_epoch
        self._batches: Iterator[TrainBatch] = iter(())
        self._next: int | None = None  # the row, counted over all epochs, that _batches gives next

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TrainBatch]:
        """This worker's batches of `epoch` from row `start` on, in the plan's order; UserError for damage."""
        first = epoch * self.steps_per_epoch + start
        if first != self._next:
            self._batches, self._next = self._from(first), first
        for _ in range(start, self.steps_per_epoch):
            self._next += 1
            yield next(self._batches)

    def _from(self, first: int) -> Iterator[TrainBatch]:
        length = max(1, TASKS_OF_STRETCH // self.size) * ROWS_OF_TASK
        for begin in range(first, self.steps, length):
            stretch = Stretch(self.source, begin, min(begin + length, self.steps), self.size)
            yield from self._batches_of(stretch)

    def _batches_of(self, stretch: Stretch) -> Iterator[TrainBatch]:
        batches = self._part(stretch).iter_torch_batches(
            batch_size=1,
            prefetch_batches=BATCHES_AHEAD,
            collate_fn=_Augment(stretch, self.source.rows, self.rank),
        )
        for step, batch in zip(range(stretch.first, stretch.last), batches, strict=True):
            *tensors, found = batch
            if int(found) != step:
                raise RuntimeError(f"Ray Data gave row {int(found)} of the plan where {step} was due")
            row = stretch.row(step, self.rank)
            yield TrainBatch(*tensors, row.epoch, row.step, row.visible.shape[1])

    def _part(self, stretch: Stretch) -> Any:
        """This worker's share of the data set, which all of them iterate over together."""
        if self.size == 1:
            return stretch_dataset(stretch, self.source.rows)
        parts = None
        if self.rank == 0:
            parts = stretch_dataset(stretch, self.source.rows).streaming_split(self.size)
        return ray.train.collective.broadcast_from_rank_zero(parts)[self.rank]


class Stretch:
    """Rows `first` to `last` of the plans of all epochs laid end to end, each split over `size` workers."""

    def __init__(self, source: TrainSource, first: int, last: int, size: int) -> None:
        self.first, self.last, self.size = first, last, size
        self.rows_of_task = ROWS_OF_TASK
        self.steps_per_epoch = source.steps_per_epoch
        epochs = range(first // self.steps_per_epoch, (last - 1) // self.steps_per_epoch + 1)
        self._plans: dict[int, EpochPlan] = {epoch: source.plan(epoch) for epoch in epochs}

    def row(self, step: int, rank: int) -> PlanRow:
        epoch, at = divmod(step, self.steps_per_epoch)
        return self._plans[epoch].slice(rank, self.size)[at]


def stretch_dataset(stretch: Stretch, rows: TrainRows) -> ray.data.Dataset:
    """Blocks of up to ROWS_OF_TASK rows of the plan, each of one worker, the workers in turn.

    Columns `step`, `rank`, `pixels` uint8 [2 modalities, n, H, W, 3].
    """
    tasks = -(-(stretch.last - stretch.first) // stretch.rows_of_task) * stretch.size
    dataset = in_order(tasks, _Read(stretch, rows))
    options = dataset.context.execution_options
    options.resource_limits = options.resource_limits.copy(
        object_store_memory=BLOCKS_STORED * stretch.size * block_bytes(rows, stretch.size)
    )
    return dataset


def block_bytes(rows: TrainRows, size: int) -> int:
    """Pixels of a block, for one worker of `size`."""
    _, count, channels, height, width = rows.shape
    return ROWS_OF_TASK * 2 * (count // size) * channels * height * width


class _Read:
    """What a task does: its block."""

    def __init__(self, stretch: Stretch, rows: TrainRows) -> None:
        self.stretch, self.rows = stretch, rows

    def __call__(self, number: int) -> Block:
        part, rank = divmod(number, self.stretch.size)
        first = self.stretch.first + part * self.stretch.rows_of_task
        steps = range(first, min(first + self.stretch.rows_of_task, self.stretch.last))
        pixels = np.array([self.rows.read(self.stretch.row(step, rank)) for step in steps])
        return {"step": np.array(steps), "rank": np.full(len(steps), rank), "pixels": pixels}


class _Augment(NumpyBatchCollateFn):
    """What a worker makes of a block, in threads of its own, ahead of the loop: the views, and the labels."""

    def __init__(self, stretch: Stretch, rows: TrainRows, rank: int) -> None:
        self.stretch, self.rows, self.rank = stretch, rows, rank

    def __call__(self, block: Block) -> list[torch.Tensor]:
        checked(block)
        step, rank = int(block["step"].item()), int(block["rank"].item())
        if rank != self.rank:
            raise RuntimeError(f"Ray Data gave row {step} of worker {rank} to worker {self.rank}")
        row = self.stretch.row(step, rank)
        views, _, *image = self.rows.shape
        filled = np.empty((views, len(row.positions), *image), np.float32)
        self.rows.augment(row, *block["pixels"][0], filled)
        batch = train_batch(row, filled)
        return [batch.visible_view1, batch.visible_view2, batch.infrared, batch.labels, torch.tensor(step)]
