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
import ray.train.collective

from csdn.cluster.ray_data import COLUMNS, PlanChunk, checked, chunk_dataset, chunk_length
from csdn.data.loader import (
    BATCHES_AHEAD,
    BATCHES_HELD,
    Slots,
    TrainBatch,
    TrainSource,
    train_batch,
)
from csdn.data.sampler import BatchPlan
from csdn.data.storage import prefetch

# Of a worker, that make views of pixels while it trains; numpy leaves Python's lock to others meanwhile.
AUGMENTING_THREADS = 2


class RayTrainLoader:
    """A source's batches for worker `rank` of `size`, made by tasks of the connected Ray instance.

    All workers iterate over the same epochs from the same rows; the first starts what serves them all.
    """

    def __init__(self, source: TrainSource, epochs: int, rank: int = 0, size: int = 1) -> None:
        self.source, self.rank, self.size = source, rank, size
        self.steps_per_epoch = source.steps_per_epoch
        self.steps = epochs * self.steps_per_epoch
        self._batches: Iterator[TrainBatch] = iter(())
        views, images, *image = source.rows.shape
        under_way = 2 * AUGMENTING_THREADS + 1
        self._slots = Slots(under_way + BATCHES_HELD, BATCHES_HELD, (views, images // size, *image))
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
        length = chunk_length(self.source.rows, self.size)
        for begin in range(first, self.steps, length):
            stretch = PlanChunk(self.source, begin, min(begin + length, self.steps), self.size)
            yield from self._batches_of(stretch)

    def _batches_of(self, stretch: PlanChunk) -> Iterator[TrainBatch]:
        self._slots.reclaim()
        for (row, slot, _), made in prefetch(self._augment, self._tasks(stretch), AUGMENTING_THREADS):
            made()
            yield train_batch(row, self._slots.lend(slot))

    def _tasks(self, stretch: PlanChunk) -> Iterator[tuple[BatchPlan, int, np.ndarray]]:
        """Rows in the plan's order, each with a free slot for its views and the pixels they are made of."""
        for due, (step, rank, pixels) in zip(
            range(stretch.first, stretch.last), self._rows_of_blocks(stretch), strict=True
        ):
            if (step, rank) != (due, self.rank):
                raise RuntimeError(f"Ray Data gave row {step}, worker {rank}; row {due}, {self.rank} is due")
            yield stretch.row(due, self.rank), self._slots.take(), pixels

    def _rows_of_blocks(self, stretch: PlanChunk) -> Iterator[tuple[int, int, np.ndarray]]:
        blocks = self._part(stretch).iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=BATCHES_AHEAD
        )
        for block in map(checked, blocks):
            yield from zip(*map(block.get, COLUMNS), strict=True)

    def _augment(self, one: tuple[BatchPlan, int, np.ndarray]) -> None:
        row, slot, pixels = one
        self.source.rows.augment(row, *pixels, self._slots.array(slot))

    def _part(self, stretch: PlanChunk) -> Any:
        """This worker's share of the data set, which all of them iterate over together."""
        if self.size == 1:
            return chunk_dataset(stretch, self.source.rows)
        parts = None
        if self.rank == 0:
            parts = chunk_dataset(stretch, self.source.rows).streaming_split(self.size)
        return ray.train.collective.broadcast_from_rank_zero(parts)[self.rank]
