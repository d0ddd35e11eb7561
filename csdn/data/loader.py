"""Reading ahead of use, for sources that answer slowly but many at a time."""

from __future__ import annotations

import math
import mmap
import os
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from csdn.data.batch import ImageReader, TestBatchReader, TrainBatchReader
from csdn.data.catalog import MODALITIES, SampleTable
from csdn.data.sampler import BatchPlan, EpochPlan, epoch_batches, epoch_plan, sequential_plan
from csdn.runtime.errors import UserError
from csdn.runtime.process import set_parent_death_signal

T = TypeVar("T")
PendingRead = Callable[[], bytes]  # gives the bytes, or raises what reading them raised


def prefetch(
    read: Callable[[T], bytes], wanted: Iterable[T], threads: int
) -> Iterator[tuple[T, PendingRead]]:
    """(one, its bytes) for each of `wanted`, in order; 0 threads read when it is asked for.

    At most twice `threads` are read or waiting to be.
    """
    if not threads:
        yield from ((one, partial(read, one)) for one in wanted)
        return
    waiting: deque[tuple[T, Future[bytes]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for one in wanted:
            waiting.append((one, pool.submit(read, one)))
            if len(waiting) == 2 * threads:
                first, future = waiting.popleft()
                yield first, future.result
        yield from ((one, future.result) for one, future in waiting)
    finally:
        pool.shutdown(cancel_futures=True)


# A batch of training images as tensors, the same whoever made them.


@dataclass(frozen=True)
class TrainBatch:
    """A row of the plan as tensors: images float32 [P*K, 3, H, W] and labels int64 [P*K], grouped by person.

    All three views have the same labels; `epoch` and `step` are the row's place in the plan.
    """

    visible_view1: torch.Tensor
    visible_view2: torch.Tensor
    infrared: torch.Tensor
    labels: torch.Tensor
    epoch: int
    step: int
    instances: int


def train_batch(row: BatchPlan, filled: np.ndarray) -> TrainBatch:
    """The batch over a row's images, float32 [3 views, P*K, 3, H, W] (csdn.data.batch), without a copy."""
    instances = row.visible.shape[1]
    labels = torch.from_numpy(np.repeat(row.identities, instances))
    return TrainBatch(*torch.from_numpy(filled), labels, row.epoch, row.step, instances)


# Memory shared with the feed's processes, used again and again.
#
# Fresh shared pages cost far more than filling them (measured: 67 ms against 3 ms for a batch of 48 MB), so a
# DataLoader's own way, new shared memory for each tensor, would cost more than decoding the batch.


class Slots:
    """`count` float32 arrays of one shape that forked processes fill and the parent lends out.

    A lent array is free again when nothing refers to it any more. At most `lendable` are out at a time: more
    are lent as copies, so a consumer may keep every batch, at the price of its memory.
    """

    def __init__(self, count: int, lendable: int, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.lendable = lendable
        # Anonymous, so that neither a name nor the size of /dev/shm stands in the way.
        self._memory = [mmap.mmap(-1, 4 * math.prod(self.shape)) for _ in range(count)]
        self._lent: set[int] = set()
        self._free: list[int] = []
        self.reclaim()

    def reclaim(self) -> None:
        """Take back all that is not lent: what was to be filled for an epoch that was given up."""
        self._free = [slot for slot in range(len(self._memory)) if slot not in self._lent]

    def take(self) -> int:
        """The number of a free slot, to be filled."""
        return self._free.pop()

    def array(self, slot: int) -> np.ndarray:
        """The slot's array, in any process."""
        return np.frombuffer(self._memory[slot], np.float32).reshape(self.shape)

    def lend(self, slot: int) -> np.ndarray:
        """The slot's array, for the consumer."""
        if len(self._lent) == self.lendable:
            self._free.append(slot)
            return self.array(slot).copy()
        array = self.array(slot)
        self._lent.add(slot)
        # Every view keeps the array at the bottom alive, so its end is the end of them all.
        weakref.finalize(array.base, self._give_back, slot)
        return array

    def _give_back(self, slot: int) -> None:
        self._lent.remove(slot)
        self._free.append(slot)


# A plan executed on one machine, in the processes of a DataLoader.
#
# One task of a process is one row of the plan, and makes one batch: the tensors are the same for any
# number of processes, and from any row on.


# Batches that each process is ahead, and those that the consumer may hold (one while it asks for the
# next): they bound the feed's memory, whatever the size of the data.
BATCHES_AHEAD = 2
BATCHES_HELD = 3


_NO_MEMORY = (
    "memory ran out where the feed makes batches. The last checkpoint is kept: lower scaling.loader_workers, "
    "or embedding.identities_per_batch or evaluation.batch_size, and run the same command again"
)


class TrainSource:
    """What batches are made of: the plan of any epoch, and the maker of a row's images. It can travel.

    Raises UserError where a person lacks a modality or there are fewer than P people.
    """

    def __init__(
        self,
        table: SampleTable,
        shards: str | Path,
        people: int,
        images: int,
        image_size: Sequence[int],
        normalize: str,
        padding: int,
        seed: int,
    ) -> None:
        self.labels, self.modalities = table.label, table.modality
        self.people, self.images, self.seed = people, images, seed
        self.rows = TrainBatchReader(
            ImageReader(table, shards, image_size), normalize, padding, seed, people * images
        )
        infrared = int(np.count_nonzero(self.modalities))
        self.steps_per_epoch = epoch_batches(len(table) - infrared, infrared, people, images)

    def plan(self, epoch: int) -> EpochPlan:
        return epoch_plan(self.labels, self.modalities, self.people, self.images, self.seed, epoch)


class TrainLoader:
    """The batches of any epoch of a source, made by `processes` processes that stay between epochs.

    0 processes: they are made by the caller.
    """

    def __init__(self, source: TrainSource, processes: int) -> None:
        self.source = source
        self.steps_per_epoch = source.steps_per_epoch
        self.executor = BatchLoader(source.rows, train_batch, processes)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TrainBatch]:
        """The batches of `epoch` from row `start` on, in the plan's order."""
        plan = self.source.plan(epoch)
        return self.executor(plan[step] for step in range(start, len(plan)))


def test_loader(
    table: SampleTable,
    ordinals: np.ndarray,
    shards: str | Path,
    image_size: Sequence[int],
    normalize: str,
    batch: int,
    processes: int,
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Each of `ordinals` once, in order: (ordinals [b], images float32 [b, 3, H, W]), b <= `batch`."""
    rows = TestBatchReader(ImageReader(table, shards, image_size), normalize, batch)
    return BatchLoader(rows, _test_batch, processes)(
        ordinals[step] for step in sequential_plan(len(ordinals), batch)
    )


test_loader.__test__ = False  # not a test case


@dataclass(frozen=True)
class ImageBatches:
    """Every image of `table` once, visible ones first, in batches of up to `batch` of one modality."""

    table: SampleTable
    shards: str | Path
    image_size: Sequence[int]
    normalize: str
    batch: int

    def steps(self, start: int = 0) -> Iterator[tuple[np.ndarray, str]]:
        """(ordinals [b], modality) of each batch, without the first `start` images."""
        for modality in MODALITIES:
            ordinals = self.table.of(modality)
            ordinals, start = ordinals[start:], max(0, start - len(ordinals))
            for step in sequential_plan(len(ordinals), self.batch):
                yield ordinals[step], modality.value

    def rows(self) -> TestBatchReader:
        """The maker of a batch's images."""
        return TestBatchReader(
            ImageReader(self.table, self.shards, self.image_size), self.normalize, self.batch
        )


def load_images(
    walk: ImageBatches, processes: int, start: int = 0
) -> Iterator[tuple[np.ndarray, torch.Tensor, str]]:
    """The batches of a walk: (ordinals [b], images float32 [b, 3, H, W], their modality)."""
    steps = list(walk.steps(start))
    made = BatchLoader(walk.rows(), _test_batch, processes)(ordinals for ordinals, _ in steps)
    for (_, modality), (ordinals, images) in zip(steps, made, strict=True):
        yield ordinals, images, modality


def _test_batch(ordinals: np.ndarray, filled: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    return ordinals, torch.from_numpy(filled[: len(ordinals)])


class Rows(Protocol):
    """Makes the images of rows: each fills float32 memory of `shape`."""

    shape: tuple[int, ...]

    def fill(self, row: Any, out: np.ndarray) -> None: ...


class BatchLoader:
    """Makes the batches of rows, in order, in a DataLoader's processes; they are started once.

    `batch(row, filled)` makes a batch over the filled memory of a row, in the consumer's process.
    """

    def __init__(self, rows: Rows, batch: Callable[[Any, np.ndarray], Any], processes: int) -> None:
        self.batch = batch
        under_way = max(1, processes * BATCHES_AHEAD)
        # One more is on its way from the processes to the consumer.
        self.slots = Slots(under_way + BATCHES_HELD + 1, BATCHES_HELD, rows.shape)
        self.sampler = _Sampler(self.slots)
        self.loader = DataLoader(
            _BatchTasks(rows, self.slots),
            sampler=self.sampler,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=processes,
            persistent_workers=processes > 0,
            prefetch_factor=BATCHES_AHEAD if processes else None,
            multiprocessing_context="fork" if processes else None,  # or the slots would not be shared
            worker_init_fn=partial(_begin, os.getpid()),
            generator=torch.Generator(),  # or each epoch would draw from torch's global one
        )

    def __call__(self, plan: Iterable[Any]) -> Iterator[Any]:
        """The batches of a plan's rows; raises UserError where data is damaged or a process dies."""
        self.sampler.plan = plan
        try:
            with _no_signal_for_children():
                made = iter(self.loader)
            for row, slot, failure in made:
                if failure:
                    raise UserError(failure)
                yield self.batch(row, self.slots.lend(slot))
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a process of the feed died: {error}\n"
                "It was killed, or memory ran out. The last checkpoint is kept: run the same command again, "
                "with a lower scaling.loader_workers if that was not the only time"
            ) from error


@contextmanager
def _no_signal_for_children() -> Iterator[None]:
    """A process's death is then raised by the next batch, not in whatever line the consumer is at."""
    if threading.current_thread() is not threading.main_thread():
        yield  # a DataLoader sets its handler in the main thread only, and so does Python
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


class _Sampler:
    """What the DataLoader iterates over: the rows themselves, each with a free slot for its images."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.plan: Iterable[Any] = ()

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        self.slots.reclaim()
        for row in self.plan:
            yield row, self.slots.take()


class _BatchTasks(TorchDataset):
    """What a process does with a row: (row, slot, message of a UserError or None)."""

    def __init__(self, rows: Rows, slots: Slots) -> None:
        self.rows, self.slots = rows, slots

    def __getitem__(self, task: tuple[Any, int]) -> tuple[Any, int, str | None]:
        row, slot = task
        try:
            self.rows.fill(row, self.slots.array(slot))
        except UserError as error:  # as text: a DataLoader would wrap the error in a traceback
            return row, slot, str(error)
        except MemoryError:
            return row, slot, _NO_MEMORY
        return row, slot, None


def _begin(parent: int, _number: int) -> None:
    """In each process: a DataLoader's own would live on for seconds, with the lock of the stage's state."""
    set_parent_death_signal(parent)


def _as_it_is(made: Any) -> Any:
    return made
