"""The data loader of one machine: plan rows in, tensors out, in the processes of a PyTorch DataLoader.

A row comes from the plan of an epoch (csdn.data.sampler), and its images from csdn.data.batch. `TrainLoader`
gives the batches of stage 2 (csdn.training.embedding); `test_loader` and `load_images` give each image once,
for evaluation, stage 1 and the report (csdn.data.features). On a cluster csdn.cluster takes TrainLoader's
place.

One task of a process is one row, and makes one batch. So the tensors are the same for any number of
processes, and from any row on.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from csdn.data.batch import ImageReader, TestBatchReader, TrainBatchReader
from csdn.data.catalog import MODALITIES, SampleTable
from csdn.data.sampler import BatchPlan, EpochPlan, epoch_batches, epoch_plan, sequential_plan
from csdn.data.shards import Place
from csdn.data.views import ImageBytes, ViewBytes, beside, finish_views, normalised, on_device
from csdn.params import Params
from csdn.runtime.errors import UserError, without_cause
from csdn.runtime.process import follow_parent, fork_server

CPU = torch.device("cpu")
BATCHES_AHEAD = 2  # that each process prepares in advance: the memory of the loader, whatever the data's size

_NO_MEMORY = (
    "memory ran out in a data loader process. The last checkpoint is kept: lower scaling.loader_workers, "
    "or embedding.identities_per_batch or evaluation.batch_size, and run the same command again"
)


# Batches for training.


@dataclass(frozen=True)
class TrainBatch:
    """A row of the plan as tensors: images float32 [n, 3, H, W] and labels int64 [n], grouped by person.

    n is P*K, or a worker's part of that. The three views share their labels; `epoch` and `step` are the row's
    position in the plan.
    """

    visible_view1: Tensor
    visible_view2: Tensor
    infrared: Tensor
    labels: Tensor
    epoch: int
    step: int


class TrainSource:
    """The batches that params.yaml describes: the plan of any epoch, and the reader of a row's images.

    Picklable: every process makes the same batches of it.
    """

    def __init__(self, params: Params, table: SampleTable, shards: Place) -> None:
        batch, model = params.embedding, params.model
        self.labels, self.modalities, self.seed = table.label, table.modality, params.seed
        self.people, self.images = batch.identities_per_batch, batch.images_per_identity
        self.image_size, self.normalize = tuple(model.image_size), model.normalize
        self.rows = TrainBatchReader(ImageReader(table, shards, self.image_size), batch.padding, self.seed)
        infrared = int(np.count_nonzero(self.modalities))
        self.steps_per_epoch = epoch_batches(len(table) - infrared, infrared, self.people, self.images)

    def plan(self, epoch: int) -> EpochPlan:
        """Raises UserError where a person lacks a modality, or there are fewer than P people."""
        return epoch_plan(self.labels, self.modalities, self.people, self.images, self.seed, epoch)

    def finished(self, batch: ViewBytes) -> TrainBatch:
        """The batch, on the device on which its pixels are."""
        boxes, channels, labels = (
            beside(batch.pixels, array) for array in (batch.boxes, batch.channels, batch.labels)
        )
        view1, view2, infrared = finish_views(batch.pixels, boxes, channels, self.normalize)
        return TrainBatch(view1, view2, infrared, labels, batch.epoch, batch.step)


def row_bytes(reader: TrainBatchReader, row: BatchPlan) -> ViewBytes:
    """A row as a process of the loader hands it over; of the table it needs what the reader has."""
    views = reader(row)
    return view_bytes(row, views.pixels, views.boxes, views.channels)


def view_bytes(row: BatchPlan, pixels: np.ndarray, boxes: np.ndarray, channels: np.ndarray) -> ViewBytes:
    """A row's views (csdn.data.batch) and labels; no copy is made of the views."""
    return ViewBytes(torch.from_numpy(pixels), boxes, channels, row.labels, row.epoch, row.step)


class TrainLoader:
    """The batches of any epoch of a source, on `device`, made by `processes` processes that stay between
    epochs.

    With 0 processes the calling process makes them.
    """

    def __init__(self, source: TrainSource, processes: int, device: torch.device = CPU) -> None:
        self.source, self.device = source, device
        self.steps_per_epoch = source.steps_per_epoch
        self.batches = BatchLoader(partial(row_bytes, source.rows), processes, device)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TrainBatch]:
        """The batches of `epoch` from row `start` on, in the plan's order."""
        plan = self.source.plan(epoch)
        rows = self.batches(plan[step] for step in range(start, len(plan)))
        return on_device(rows, self.device, self.source.finished)


# Every image once, for evaluation and for features.


def test_loader(
    table: SampleTable,
    indices: np.ndarray,
    shards: Place,
    image_size: Sequence[int],
    normalize: str,
    batch: int,
    processes: int,
    device: torch.device = CPU,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Each of `indices` once, in order: (indices [b], images float32 [b, 3, H, W]), b <= `batch`."""
    reader = TestBatchReader(ImageReader(table, shards, image_size))
    steps = (indices[step] for step in sequential_plan(len(indices), batch))
    return _images(reader, steps, normalize, processes, device)


test_loader.__test__ = False  # type: ignore[attr-defined]  # for pytest: not a test case


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
        return TestBatchReader(ImageReader(self.table, self.shards, self.image_size))


def load_images(
    batches: ImageBatches, processes: int, start: int = 0, device: torch.device = CPU
) -> Iterator[tuple[np.ndarray, Tensor, str]]:
    """The batches without the first `start` images: (indices [b], images float32 [b, 3, H, W], modality)."""
    steps = list(batches.steps(start))
    rows = (indices for indices, _ in steps)
    loaded = _images(batches.rows(), rows, batches.normalize, processes, device)
    for (_, modality), (indices, images) in zip(steps, loaded, strict=True):
        yield indices, images, modality


def _images(
    reader: TestBatchReader,
    steps: Iterable[np.ndarray],
    normalize: str,
    processes: int,
    device: torch.device,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """(indices, images on `device`) of each step."""
    rows = BatchLoader(partial(_image_bytes, reader), processes, device)(steps)
    return on_device(rows, device, lambda row: (row.indices, normalised(row.pixels, normalize)))


def _image_bytes(reader: TestBatchReader, indices: np.ndarray) -> ImageBytes:
    return ImageBytes(indices, torch.from_numpy(reader(indices)))


# Running the rows in the processes of a DataLoader.


class BatchLoader:
    """Makes `make_batch(row)` of each row, in order, in the processes of a DataLoader.

    They are started once, for all plans.
    For a GPU the tensors are in pinned memory, from which a copy runs beside the computation.
    """

    def __init__(self, make_batch: Callable[[Any], Any], processes: int, device: torch.device = CPU) -> None:
        self.plan = _Plan()
        self.loader = DataLoader(
            _RowDataset(make_batch),
            sampler=self.plan,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=processes,
            persistent_workers=processes > 0,
            prefetch_factor=BATCHES_AHEAD if processes else None,
            multiprocessing_context=fork_server(__name__) if processes else None,
            worker_init_fn=partial(_start_process, dict(os.environ)),
            generator=torch.Generator(),  # otherwise each epoch would draw from torch's global generator
            pin_memory=device.type == "cuda",
        )

    def __call__(self, plan: Iterable[Any]) -> Iterator[Any]:
        """The batches of a plan's rows; raises UserError where data is damaged or a process dies."""
        self.plan.rows = plan
        try:
            with _keep_sigchld_handler():
                batches = iter(self.loader)
            for batch in batches:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except (RuntimeError, ConnectionError, EOFError) as error:  # the last two where it held a batch
            if isinstance(error, RuntimeError) and not re.search("DataLoader worker|Pin memory", str(error)):
                raise
            raise UserError(
                "a data loader process was killed, or memory ran out in it. The last checkpoint is kept: run "
                "the same command again, with a lower scaling.loader_workers if that was not the only time"
            ) from error


class _Plan:
    """The sampler of the DataLoader: the rows of this epoch."""

    rows: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


class _RowDataset(TorchDataset[Any]):
    """The data set of the DataLoader: the item of a row is its batch, or the UserError of making it."""

    def __init__(self, make_batch: Callable[[Any], Any]) -> None:
        self.make_batch = make_batch

    def __getitem__(self, row: Any) -> Any:
        try:
            return self.make_batch(row)
        except UserError as error:  # returned, because a DataLoader wraps an exception in a traceback
            return without_cause(error)
        except MemoryError:
            return UserError(_NO_MEMORY)


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
