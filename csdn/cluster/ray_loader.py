"""Ray Data executes the training plan: a task reads the images of a few rows for one worker.

Plan, reading and augmentation are those of csdn.data, so the tensors equal the DataLoader's bit for bit. Each
worker makes data sets of its own rows and iterates over them alone, so their order is the one that Ray Data
promises (`preserve_order`). What arrives is compared with the plan all the same.

Ray Train's `datasets=` and `get_dataset_shard` are not used, because they do not keep the plan's order. They
split a data set by `streaming_split(equal=True)`: of seven blocks of three rows, for two workers in turn, the
second worker received a row of the first, and one row was dropped. A data set that they do not split
(`datasets_to_split=[]`) is executed in each worker, as these are, but it is made before the worker has read
its checkpoint, and would begin at the wrong step after a failure. In either case Ray Data leaves the cores
and GPUs that Ray Train has reserved to Ray Train, and shares the others among the data sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch

from csdn.cluster.ray_data import COLUMNS, Blocking, checked, plan_dataset
from csdn.data.batch import VIEWS
from csdn.data.loader import BATCHES_AHEAD, CPU, TrainBatch, TrainSource, view_bytes
from csdn.data.sampler import BatchPlan
from csdn.data.views import ViewBytes, on_device

# Of a data set, whose items are in the object store from the beginning. It takes a second to start.
TASKS_PER_CHUNK = 500


class RayTrainLoader:
    """The batches of `source` on `device` for worker `rank` of `size`, read by tasks of the connected Ray
    instance.
    """

    def __init__(
        self, source: TrainSource, epochs: int, rank: int = 0, size: int = 1, device: torch.device = CPU
    ) -> None:
        self.source, self.rank, self.size, self.device = source, rank, size, device
        self.epochs, self.steps_per_epoch = epochs, source.steps_per_epoch
        self.blocking = Blocking.of(source, size)
        self._batches: Iterator[TrainBatch] = iter(())
        self._next: tuple[int, int] | None = None  # epoch and step of the batch that _batches yields next

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TrainBatch]:
        """This worker's batches of `epoch` from step `start` on, in order. UserError for damaged images."""
        if (epoch, start) != self._next:
            self._batches = on_device(self._bytes(epoch, start), self.device, self.source.finished)
        for step in range(start, self.steps_per_epoch):
            self._next = divmod(epoch * self.steps_per_epoch + step + 1, self.steps_per_epoch)
            yield next(self._batches)

    def _bytes(self, epoch: int, start: int) -> Iterator[ViewBytes]:
        """This worker's rows of the plan from there on, over all epochs."""
        rows = self._rows(epoch, start)
        while chunk := list(islice(rows, TASKS_PER_CHUNK * self.blocking.rows)):
            yield from self._read(chunk)

    def _rows(self, first: int, start: int) -> Iterator[BatchPlan]:
        for epoch in range(first, self.epochs):
            plan = self.source.plan(epoch).slice(self.rank, self.size)
            yield from (plan[step] for step in range(start, len(plan)))
            start = 0

    def _read(self, rows: Sequence[BatchPlan]) -> Iterator[ViewBytes]:
        """The rows, in order, read by the tasks of one data set."""
        tasks = self.blocking.tasks(rows, self.source.rows.images.files)
        blocks = plan_dataset(tasks, self.source, self.blocking).iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=BATCHES_AHEAD
        )
        received = chain.from_iterable(
            zip(*map(block.get, COLUMNS), strict=True) for block in map(checked, blocks)
        )
        for row in rows:
            yield view_bytes(row, *joined(row, islice(received, self.blocking.parts)))


def joined(row: BatchPlan, parts: Iterable[tuple[Any, ...]]) -> list[np.ndarray]:
    """The views of a row, copied out of Ray's read-only memory, which each part leaves before the next one is
    there.

    parts: COLUMNS. Raises RuntimeError if they are not those of the row.
    """
    views: list[np.ndarray] = []
    images = len(row.positions)
    filled = 0
    for epoch, step, positions, *arrays in parts:
        to = filled + len(positions)
        if (epoch, step) != (row.epoch, row.step) or not np.array_equal(positions, row.positions[filled:to]):
            raise RuntimeError(
                f"Ray Data sent images {positions} of epoch {epoch}, step {step} instead of "
                f"{row.positions[filled:to]} of epoch {row.epoch}, step {row.step}"
            )
        views = views or [np.empty((len(VIEWS), images, *array.shape[2:]), array.dtype) for array in arrays]
        for view, array in zip(views, arrays, strict=True):
            view[:, filled:to] = array
        filled = to
    if filled != images:
        raise RuntimeError(
            f"Ray Data ended after {filled} of {images} images of epoch {row.epoch}, step {row.step}"
        )
    return views
