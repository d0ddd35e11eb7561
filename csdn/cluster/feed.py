"""A plan executed by Ray Data: one task of the cluster is one row of the plan, and makes one batch.

The rows, the reading and the augmentation are those of csdn.data; only who runs them differs, so the tensors
are the DataLoader's bit for bit. An epoch's data set begins at the row where the loop stands: a static one
would repeat its rows each epoch, and begin at row 0 after a failure.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import numpy as np
import ray.data

from csdn.data.batches import TrainBatch, train_batch
from csdn.data.feed import BATCHES_AHEAD, TrainFeed
from csdn.data.plan import EpochPlan
from csdn.data.rows import TrainRows
from csdn.errors import UserError

# Below that it reports each data set, so each epoch.
logging.getLogger("ray.data").setLevel(logging.ERROR)


class RayFeed:
    """The batches of another feed, made by tasks of the connected Ray instance."""

    def __init__(self, feed: TrainFeed) -> None:
        self.feed = feed
        self.steps_per_epoch = feed.steps_per_epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TrainBatch]:
        """The batches of `epoch` from row `start` on, in the plan's order; UserError for damaged data."""
        plan = self.feed.plan(epoch)
        if start == len(plan):
            return
        blocks = epoch_dataset(plan, start, self.feed.rows).iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=BATCHES_AHEAD
        )
        for step, block in zip(range(start, len(plan)), blocks, strict=True):
            yield _batch(plan, step, block)


def epoch_dataset(plan: EpochPlan, start: int, rows: TrainRows) -> ray.data.Dataset:
    """The plan from row `start` on: a block a row, columns `step` and `images` [3 views, p*K, 3, H, W]."""
    steps = len(plan) - start
    numbers = ray.data.range(steps, override_num_blocks=steps)
    dataset = numbers.map_batches(_MakeRow(plan, start, rows), batch_size=1)
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    return dataset


class _MakeRow:
    """What a task does with a row; where that fails by the user's data, column `failure` says why."""

    def __init__(self, plan: EpochPlan, start: int, rows: TrainRows) -> None:
        self.plan, self.start, self.rows = plan, start, rows

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        step = self.start + int(block["id"][0])
        images = np.empty((1, *self.rows.shape), np.float32)
        try:
            self.rows.fill(self.plan[step], images[0])
        except UserError as error:
            return {"step": np.array([step]), "failure": np.array([str(error)])}
        return {"step": np.array([step]), "images": images}


def _batch(plan: EpochPlan, step: int, block: dict[str, np.ndarray]) -> TrainBatch:
    if "failure" in block:
        raise UserError(str(block["failure"][0]))
    if block["step"].tolist() != [step]:
        raise RuntimeError(f"Ray Data gave rows {block['step']} of the plan where {step} was due")
    with warnings.catch_warnings():
        # The object store's memory is read-only, and nothing writes into a batch.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return train_batch(plan[step], block["images"][0])
