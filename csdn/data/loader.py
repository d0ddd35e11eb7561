"""The data loader of one machine: plan rows in, tensors out, in the processes of a PyTorch DataLoader.

A row comes from the plan of an epoch (csdn.data.sampler), and its images from csdn.data.batch. `TrainLoader`
gives the batches of stage 2 (csdn.training.embedding); `test_loader` and `load_images` give each image once,
for evaluation, stage 1 and the report (csdn.data.features). On a cluster csdn.cluster takes TrainLoader's
place.

One task of a process is one row, and makes one batch. So the tensors are the same for any number of
processes, and from any row on.
"""

from __future__ import annotations

import math
import mmap
import os
import signal
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.reduction import DupFd
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from csdn.data.batch import ImageReader, TestBatchReader, TrainBatchReader
from csdn.data.catalog import MODALITIES, SampleTable
from csdn.data.sampler import BatchPlan, EpochPlan, epoch_batches, epoch_plan, sequential_plan
from csdn.data.shards import Place
from csdn.params import Params
from csdn.runtime.errors import UserError, without_cause
from csdn.runtime.process import follow_parent, fork_server

# Batches that each process prepares in advance, and batches that the consumer may hold (one while it requests
# the next). They bound the memory of the loader, whatever the size of the data.
BATCHES_AHEAD = 2
BATCHES_HELD = 3

_NO_MEMORY = (
    "memory ran out in a data loader process. The last checkpoint is kept: lower scaling.loader_workers, "
    "or embedding.identities_per_batch or evaluation.batch_size, and run the same command again"
)


# Batches for training.


@dataclass(frozen=True)
class TrainBatch:
    """A row of the plan as tensors: images float32 [P*K, 3, H, W] and labels int64 [P*K], grouped by person.

    The three views share their labels; `epoch` and `step` are the row's position in the plan, `instances` is
    K.
    """

    visible_view1: torch.Tensor
    visible_view2: torch.Tensor
    infrared: torch.Tensor
    labels: torch.Tensor
    epoch: int
    step: int
    instances: int


def train_batch(row: BatchPlan, images: np.ndarray) -> TrainBatch:
    """The batch of a row, whose images are float32 [3 views, P*K, 3, H, W] (csdn.data.batch); no copy is
    made.
    """
    instances = row.visible.shape[1]
    labels = torch.from_numpy(np.repeat(row.identities, instances))
    return TrainBatch(*torch.from_numpy(images), labels, row.epoch, row.step, instances)


class TrainSource:
    """The batches that params.yaml describes: the plan of any epoch, and the reader of a row's images.

    Picklable: every process makes the same batches of it.
    """

    def __init__(self, params: Params, table: SampleTable, shards: Place) -> None:
        batch, model = params.embedding, params.model
        self.labels, self.modalities, self.seed = table.label, table.modality, params.seed
        self.people, self.images = batch.identities_per_batch, batch.images_per_identity
        images = ImageReader(table, shards, model.image_size)
        self.rows = TrainBatchReader(
            images, model.normalize, batch.padding, self.seed, self.people * self.images
        )
        infrared = int(np.count_nonzero(self.modalities))
        self.steps_per_epoch = epoch_batches(len(table) - infrared, infrared, self.people, self.images)

    def plan(self, epoch: int) -> EpochPlan:
        """Raises UserError where a person lacks a modality, or there are fewer than P people."""
        return epoch_plan(self.labels, self.modalities, self.people, self.images, self.seed, epoch)


class TrainLoader:
    """The batches of any epoch of a source, made by `processes` processes that stay between epochs.

    With 0 processes the calling process makes them.
    """

    def __init__(self, source: TrainSource, processes: int) -> None:
        self.source = source
        self.steps_per_epoch = source.steps_per_epoch
        self.batches = BatchLoader(source.rows, train_batch, processes)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TrainBatch]:
        """The batches of `epoch` from row `start` on, in the plan's order."""
        plan = self.source.plan(epoch)
        return self.batches(plan[step] for step in range(start, len(plan)))


# Every image once, for evaluation and for features.


def test_loader(
    table: SampleTable,
    indices: np.ndarray,
    shards: Place,
    image_size: Sequence[int],
    normalize: str,
    batch: int,
    processes: int,
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Each of `indices` once, in order: (indices [b], images float32 [b, 3, H, W]), b <= `batch`."""
    reader = TestBatchReader(ImageReader(table, shards, image_size), normalize, batch)
    return BatchLoader(reader, _test_batch, processes)(
        indices[step] for step in sequential_plan(len(indices), batch)
    )


test_loader.__test__ = False  # not a test case


@dataclass(frozen=True)
class ImageBatches:
    """Every image of `table` once, visible ones first, in batches of up to `batch` of one modality."""

    table: SampleTable
    shards: Place
    image_size: Sequence[int]
    normalize: str
    batch: int

    def steps(self, start: int = 0) -> Iterator[tuple[np.ndarray, str]]:
        """(indices [b], modality) of each batch, without the first `start` images."""
        for modality in MODALITIES:
            indices = self.table.of(modality)
            indices, start = indices[start:], max(0, start - len(indices))
            for step in sequential_plan(len(indices), self.batch):
                yield indices[step], modality.value

    def rows(self) -> TestBatchReader:
        """The reader of a batch's images."""
        return TestBatchReader(
            ImageReader(self.table, self.shards, self.image_size), self.normalize, self.batch
        )


def load_images(
    batches: ImageBatches, processes: int, start: int = 0
) -> Iterator[tuple[np.ndarray, torch.Tensor, str]]:
    """The batches without the first `start` images: (indices [b], images float32 [b, 3, H, W], modality)."""
    steps = list(batches.steps(start))
    loaded = BatchLoader(batches.rows(), _test_batch, processes)(indices for indices, _ in steps)
    for (_, modality), (indices, images) in zip(steps, loaded, strict=True):
        yield indices, images, modality


def _test_batch(indices: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    return indices, torch.from_numpy(images[: len(indices)])


# Running the rows in the processes of a DataLoader.


class BatchReader(Protocol):
    """Makes the images of a row: writes them into float32 memory of `shape` (csdn.data.batch)."""

    shape: tuple[int, ...]

    def fill(self, row: Any, out: np.ndarray) -> None: ...


class BatchLoader:
    """Makes the batches of rows, in order, in the processes of a DataLoader, which are started once.

    A process lets `reader` fill a slot of shared memory with a row's images; the consumer's process makes the
    batch of them: `make_batch(row, images)`.
    """

    def __init__(
        self, reader: BatchReader, make_batch: Callable[[Any, np.ndarray], Any], processes: int
    ) -> None:
        self.make_batch = make_batch
        in_progress = max(1, processes * BATCHES_AHEAD)
        # One more slot is for the batch that is on its way from a process to the consumer.
        self.slots = Slots(in_progress + BATCHES_HELD + 1, BATCHES_HELD, reader.shape, shared=processes > 0)
        self.sampler = _SlotSampler(self.slots)
        self.loader = DataLoader(
            _RowDataset(reader, self.slots),
            sampler=self.sampler,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=processes,
            persistent_workers=processes > 0,
            prefetch_factor=BATCHES_AHEAD if processes else None,
            multiprocessing_context=fork_server(__name__) if processes else None,
            worker_init_fn=partial(_start_process, dict(os.environ)),
            generator=torch.Generator(),  # otherwise each epoch would draw from torch's global generator
        )

    def __call__(self, plan: Iterable[Any]) -> Iterator[Any]:
        """The batches of a plan's rows; raises UserError where data is damaged or a process dies."""
        self.sampler.plan = plan
        try:
            with _keep_sigchld_handler():
                results = iter(self.loader)
            for row, slot, error in results:
                if error:
                    raise error
                yield self.make_batch(row, self.slots.lend(slot))
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a data loader process died: {error}\n"
                "It was killed, or memory ran out. The last checkpoint is kept: run the same command again, "
                "with a lower scaling.loader_workers if that was not the only time"
            ) from error


class _SlotSampler:
    """The sampler of the DataLoader: the rows themselves, each with a free slot for its images."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.plan: Iterable[Any] = ()

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        self.slots.reclaim()
        for row in self.plan:
            yield row, self.slots.take()


class _RowDataset(TorchDataset):
    """The data set of the DataLoader: item (row, slot) fills the slot, and is (row, slot, error or None)."""

    def __init__(self, reader: BatchReader, slots: Slots) -> None:
        self.reader, self.slots = reader, slots

    def __getitem__(self, task: tuple[Any, int]) -> tuple[Any, int, UserError | None]:
        row, slot = task
        try:
            self.reader.fill(row, self.slots.array(slot))
        except UserError as error:  # returned, because a DataLoader wraps an exception in a traceback
            return row, slot, without_cause(error)
        except MemoryError:
            return row, slot, UserError(_NO_MEMORY)
        return row, slot, None


def _start_process(environment: dict[str, str], _number: int) -> None:
    """Runs first in each process."""
    follow_parent(environment)


def _unchanged(item: Any) -> Any:
    return item


@contextmanager
def _keep_sigchld_handler() -> Iterator[None]:
    """Undo the SIGCHLD handler that a DataLoader installs.

    The death of a process is then raised by the next batch, not in whatever line the consumer is at.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python and the DataLoader set signal handlers in the main thread only
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _memory_file() -> int:
    """A file in memory, which is not limited by the size of /dev/shm; it ends with its last process."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("slots")
    with tempfile.TemporaryFile() as file:  # where there is no Linux
        return os.dup(file.fileno())


class Slots:
    """`count` float32 arrays of one shape in shared memory, filled by other processes and lent by this one.

    The memory is used again and again, because a fresh shared page costs far more than filling it (measured:
    67 ms against 3 ms for a batch of 48 MB); a DataLoader on its own allocates new shared memory for each
    tensor.

    A lent array is free again when nothing refers to it any more. At most `lendable` arrays are lent at a
    time; beyond that the consumer gets copies. So it may keep every batch, at the price of the memory.
    """

    def __init__(self, count: int, lendable: int, shape: Sequence[int], shared: bool) -> None:
        self.shape = tuple(shape)
        self.lendable = lendable
        self._bytes = 4 * math.prod(self.shape)
        self._file = -1  # mmap's word for memory of this process alone
        if shared:
            self._file = _memory_file()
            os.ftruncate(self._file, count * self._bytes)
            weakref.finalize(self, os.close, self._file)
        self._memory = self._mapped(count)
        self._lent: set[int] = set()
        self._free: list[int] = []
        self.reclaim()

    def reclaim(self) -> None:
        """Free all slots that are not lent, such as those of an epoch that was not read to its end."""
        self._free = [slot for slot in range(len(self._memory)) if slot not in self._lent]

    def _mapped(self, count: int) -> list[memoryview]:
        """Each array's memory: a view of its own, which can be collected when nothing refers to it."""
        whole = mmap.mmap(self._file, count * self._bytes)
        return [memoryview(whole)[n * self._bytes : (n + 1) * self._bytes] for n in range(count)]

    def __getstate__(self) -> dict[str, Any]:
        """For a process that is being started: it shares the memory."""
        return {"shape": self.shape, "count": len(self._memory), "file": DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.shape, self._bytes = state["shape"], 4 * math.prod(state["shape"])
        self._file = state["file"].detach()
        self._memory = self._mapped(state["count"])

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
        # Every view keeps the base array alive, so the slot is free when the base is collected.
        weakref.finalize(array.base, self._give_back, slot)
        return array

    def _give_back(self, slot: int) -> None:
        self._lent.remove(slot)
        self._free.append(slot)
