"""Ray Data executes the training plan: a task reads the images of a few steps for one worker.

Plan, reading and augmentation are those of csdn.data, so the tensors equal the DataLoader's bit for bit.
Tasks send uint8 pixels, a sixth of the bytes of the views that the worker makes of them. Each Ray data set is
a chunk of the plan that begins where the training loop stands: one data set for the whole training would
begin again at step 0 after a failure.
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

# Threads of a worker that augment while it trains; numpy releases the interpreter lock meanwhile.
AUGMENTING_THREADS = 2


class RayTrainLoader:
    """The batches of `source` for worker `rank` of `size`, read by tasks of the connected Ray instance.

    All workers iterate over the same epochs from the same steps; rank 0 starts the data sets for all of them.
    """

    def __init__(self, source: TrainSource, epochs: int, rank: int = 0, size: int = 1) -> None:
        self.source, self.rank, self.size = source, rank, size
        self.steps_per_epoch = source.steps_per_epoch
        self.steps = epochs * self.steps_per_epoch
        self._batches: Iterator[TrainBatch] = iter(())
        views, images, *image = source.rows.shape
        in_progress = 2 * AUGMENTING_THREADS + 1
        self._slots = Slots(
            in_progress + BATCHES_HELD, BATCHES_HELD, (views, images // size, *image), shared=False
        )
        self._next: int | None = None  # the step, counted over all epochs, that _batches yields next

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TrainBatch]:
        """This worker's batches of `epoch` from step `start` on, in order. UserError for damaged images."""
        first = epoch * self.steps_per_epoch + start
        if first != self._next:
            self._batches, self._next = self._from(first), first
        for _ in range(start, self.steps_per_epoch):
            self._next += 1
            yield next(self._batches)

    def _from(self, first: int) -> Iterator[TrainBatch]:
        length = chunk_length(self.source.rows, self.size)
        for begin in range(first, self.steps, length):
            chunk = PlanChunk(self.source, begin, min(begin + length, self.steps), self.size)
            yield from self._chunk_batches(chunk)

    def _chunk_batches(self, chunk: PlanChunk) -> Iterator[TrainBatch]:
        self._slots.reclaim()
        for (batch, slot, _), wait in prefetch(self._augment, self._inputs(chunk), AUGMENTING_THREADS):
            wait()
            yield train_batch(batch, self._slots.lend(slot))

    def _augment(self, inputs: tuple[BatchPlan, int, np.ndarray]) -> None:
        batch, slot, pixels = inputs
        self.source.rows.augment(batch, *pixels, self._slots.array(slot))

    def _inputs(self, chunk: PlanChunk) -> Iterator[tuple[BatchPlan, int, np.ndarray]]:
        """For each step in order: the batch's plan, a free slot for its views, and its pixels."""
        for expected, (step, rank, pixels) in zip(
            range(chunk.first, chunk.last), self._received(chunk), strict=True
        ):
            if (step, rank) != (expected, self.rank):
                raise RuntimeError(
                    f"Ray Data sent step {step} of worker {rank} instead of {expected} of {self.rank}"
                )
            yield chunk.batch(expected, self.rank), self._slots.take(), pixels

    def _received(self, chunk: PlanChunk) -> Iterator[tuple[int, int, np.ndarray]]:
        """(step, rank, pixels) as they arrive."""
        blocks = self._dataset(chunk).iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=BATCHES_AHEAD
        )
        for block in map(checked, blocks):
            yield from zip(*map(block.get, COLUMNS), strict=True)

    def _dataset(self, chunk: PlanChunk) -> Any:
        """This worker's part of the chunk's data set; all workers iterate over their parts together."""
        if self.size == 1:
            return chunk_dataset(chunk, self.source.rows)
        parts = None
        if self.rank == 0:
            parts = chunk_dataset(chunk, self.source.rows).streaming_split(self.size)
        return ray.train.collective.broadcast_from_rank_zero(parts)[self.rank]
