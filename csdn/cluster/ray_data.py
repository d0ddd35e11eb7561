"""Ray Data sets: ordered tasks, tasks that read images for a network, and rows of the training plan.

A task receives its own item and no other, so that what all tasks cost is linear in the number of images. The
tasks do not import torch, so that a new task process is ready within a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.data

from csdn.data.batch import VIEWS, ImageFiles, ImageReader, TestBatchReader, TrainBatchReader
from csdn.runtime.errors import UserError, without_cause

if TYPE_CHECKING:
    from csdn.data.loader import TrainSource
    from csdn.data.sampler import BatchPlan


Block = dict[str, np.ndarray]

# ---- tasks whose results arrive in order


def in_order(items: Sequence[Any], task: Callable[[Any], Block]) -> ray.data.Dataset:
    """One block for each item, in order: `task(item)`, or its UserError (see `checked`).

    `task` is sent to every task, so it should be small. Ray Data formats the first item by `repr`, for an
    error that it then catches, so an item's `repr` should be short. The order is what
    `ExecutionOptions.preserve_order` promises for the blocks of a data set that one process iterates over.
    """
    source = ray.data.from_items(list(items), override_num_blocks=max(1, len(items)))
    dataset = source.map_batches(_Task(task), batch_size=None)
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    return dataset


class _Task:
    def __init__(self, task: Callable[[Any], Block]) -> None:
        self.task = task

    def __call__(self, block: Block) -> Block:
        try:
            return self.task(block["item"][0])
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


@dataclass(frozen=True, repr=False)
class TestImages:
    """The item of a task that reads a batch's images."""

    __test__ = False  # not a test case

    files: ImageFiles
    modality: str


class ReadImages:
    """A task: `pixels` uint8 [1, B, 3, H, W] and `modality` [1] of TestImages."""

    def __init__(self, images: ImageReader) -> None:
        self.images = images.of(None)

    def __call__(self, batch: TestImages) -> Block:
        reader = TestBatchReader(self.images.of(batch.files))
        pixels = reader(np.arange(len(batch.files.offset)))
        return {"pixels": pixels[None], "modality": np.array([batch.modality])}


# ---- rows of the training plan

# Pixels of a block, which is the output of a task: bounds the memory, whatever the batch. A task costs the
# process that iterates over a data set some 20 ms, so smaller blocks are dearer.
BLOCK_BYTES = 64 * 2**20
# Blocks in the object store for each worker: the memory of the loader. Ray also counts the blocks that
# running tasks will make: with half as many only one task runs at a time.
BLOCKS_STORED = 8


@dataclass(frozen=True, repr=False)
class PlanTask:
    """The item of a task that reads rows of the plan, or one part of a row; the rows' indices are those of
    `files`.
    """

    files: ImageFiles
    rows: list[BatchPlan]


@dataclass(frozen=True)
class Blocking:
    """How a worker's rows of the plan become blocks: `rows` whole ones in each, or one of the `parts` of a
    row.

    images: of each modality in a row; image_bytes: of the three views of such a pair.
    """

    rows: int
    parts: int
    images: int
    image_bytes: int

    @classmethod
    def of(cls, source: TrainSource, size: int) -> Blocking:
        """Blocks of BLOCK_BYTES at most, for one worker of `size`."""
        images = source.people * source.images // size
        image_bytes = len(VIEWS) * 3 * math.prod(source.image_size)
        fitting = max(1, BLOCK_BYTES // image_bytes)
        return cls(max(1, fitting // images), -(-images // fitting), images, image_bytes)

    @property
    def block_bytes(self) -> int:
        return self.rows * -(-self.images // self.parts) * self.image_bytes

    def tasks(self, rows: Sequence[BatchPlan], files: ImageFiles) -> list[PlanTask]:
        """What reads the rows, in order; files: of the images that the plan names."""
        parts = [part for row in rows for part in self._cut(row)]
        return [_task(parts[at : at + self.rows], files) for at in range(0, len(parts), self.rows)]

    def _cut(self, row: BatchPlan) -> list[BatchPlan]:
        names = ("labels", "visible", "infrared", "positions")
        cut = zip(*(np.array_split(getattr(row, name), self.parts) for name in names), strict=True)
        return [replace(row, **dict(zip(names, columns, strict=True))) for columns in cut]


def _task(rows: Sequence[BatchPlan], files: ImageFiles) -> PlanTask:
    used = np.concatenate([indices for row in rows for indices in (row.visible, row.infrared)])
    numbered, own = [], 0
    for row in rows:
        visible = np.arange(own, own + row.visible.size)
        numbered.append(replace(row, visible=visible, infrared=visible + row.visible.size))
        own += 2 * row.visible.size
    return PlanTask(files.take(used), numbered)


def plan_dataset(tasks: Sequence[PlanTask], source: TrainSource, blocking: Blocking) -> ray.data.Dataset:
    """The blocks of one worker's tasks, in order: COLUMNS, with an entry for each of a task's rows."""
    dataset = in_order(tasks, ReadRows(source.rows))
    options = dataset.context.execution_options
    options.resource_limits = options.resource_limits.copy(
        object_store_memory=BLOCKS_STORED * blocking.block_bytes
    )
    return dataset


# What tells which images these are, and their views (csdn.data.batch.RowViews).
COLUMNS = ("epoch", "step", "positions", "pixels", "boxes", "channels")


class ReadRows:
    """A task: COLUMNS of the rows of a PlanTask."""

    def __init__(self, reader: TrainBatchReader) -> None:
        self.images, self.padding, self.seed = reader.images.of(None), reader.padding, reader.seed

    def __call__(self, task: PlanTask) -> Block:
        reader = TrainBatchReader(self.images.of(task.files), self.padding, self.seed)
        pixels = np.empty((len(task.rows), *reader.shape(task.rows[0])), np.uint8)
        made = [vars(row) | vars(reader(row, out)) for row, out in zip(task.rows, pixels, strict=True)]
        small = [name for name in COLUMNS if name != "pixels"]
        return {"pixels": pixels} | {name: np.stack([row[name] for row in made]) for name in small}
