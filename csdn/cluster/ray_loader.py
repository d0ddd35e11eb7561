"""Ray Data executes the training plan: a task reads the images of a few steps for one worker.

Plan, reading and augmentation are those of csdn.data, so the tensors equal the DataLoader's bit for bit. Each
Ray data set is a chunk of the plan that begins where the training loop stands: one data set for the whole
training would begin again at step 0 after a failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import ray.train.collective
import torch

from csdn.cluster.ray_data import COLUMNS, PlanChunk, checked, chunk_dataset, chunk_length
from csdn.data.loader import BATCHES_AHEAD, CPU, TrainBatch, TrainSource, view_bytes
from csdn.data.views import ViewBytes, on_device


class RayTrainLoader:
    """The batches of `source` on `device` for worker `rank` of `size`, read by tasks of the connected Ray
    instance.

    All workers iterate over the same epochs from the same steps; rank 0 starts the data sets for all of them.
    """

    def __init__(
        self, source: TrainSource, epochs: int, rank: int = 0, size: int = 1, device: torch.device = CPU
    ) -> None:
        self.source, self.rank, self.size, self.device = source, rank, size, device
        self.steps_per_epoch = source.steps_per_epoch
        self.steps = epochs * self.steps_per_epoch
        self._batches: Iterator[TrainBatch] = iter(())
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
        return on_device(self._bytes(first), self.device, self.source.finished)

    def _bytes(self, first: int) -> Iterator[ViewBytes]:
        length = chunk_length(self.source, self.size)
        for begin in range(first, self.steps, length):
            chunk = PlanChunk(self.source, begin, min(begin + length, self.steps), self.size)
            yield from self._chunk_bytes(chunk)

    def _chunk_bytes(self, chunk: PlanChunk) -> Iterator[ViewBytes]:
        """The rows of the chunk, in order."""
        for expected, (step, rank, *views) in zip(
            range(chunk.first, chunk.last), self._received(chunk), strict=True
        ):
            if (step, rank) != (expected, self.rank):
                raise RuntimeError(
                    f"Ray Data sent step {step} of worker {rank} instead of {expected} of {self.rank}"
                )
            # Copied, because Ray's memory is read-only.
            yield view_bytes(chunk.batch(expected, self.rank), *map(np.array, views))

    def _received(self, chunk: PlanChunk) -> Iterator[tuple[int, int, *tuple[np.ndarray, ...]]]:
        """Step, rank and views as they arrive."""
        blocks = self._dataset(chunk).iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=BATCHES_AHEAD
        )
        for block in map(checked, blocks):
            yield from zip(*map(block.get, COLUMNS), strict=True)

    def _dataset(self, chunk: PlanChunk) -> Any:
        """This worker's part of the chunk's data set; all workers iterate over their parts together."""
        if self.size == 1:
            return chunk_dataset(chunk, self.source)
        parts = None
        if self.rank == 0:
            parts = chunk_dataset(chunk, self.source).streaming_split(self.size)
        return ray.train.collective.broadcast_from_rank_zero(parts)[self.rank]
