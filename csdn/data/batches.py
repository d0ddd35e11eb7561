"""A batch of training images as tensors, the same whoever made them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from csdn.data.plan import PlanRow


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


def train_batch(row: PlanRow, filled: np.ndarray) -> TrainBatch:
    """The batch over a row's images, float32 [3 views, P*K, 3, H, W] (csdn.data.rows), without a copy."""
    instances = row.visible.shape[1]
    labels = torch.from_numpy(np.repeat(row.identities, instances))
    return TrainBatch(*torch.from_numpy(filled), labels, row.epoch, row.step, instances)
