"""Stage 2: the image encoder learns to tell people, tied to the fused text of each (docs/method.md).

`train_embedding` is the loop; it knows tensors and batches, not where they come from. The same loop runs in
the plain process and in a Ray Train worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from csdn.model import CSDN
from csdn.pace import Pace
from csdn.state import StageState
from csdn.training.checkpoint import optimizer_tensors, restore_optimizer
from csdn.training.log import LossLog
from csdn.training.losses import embedding_losses
from csdn.training.schedules import factor


class Batch(Protocol):
    """A row of the plan as tensors: images float [P*K, 3, H, W], labels int64 [P*K], grouped by person."""

    visible_view1: Tensor
    visible_view2: Tensor
    infrared: Tensor
    labels: Tensor
    step: int


class Feed(Protocol):
    """Executes the plan; `epoch(e, start)` yields the batches of epoch e from row `start` on."""

    steps_per_epoch: int

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class EmbeddingSettings:
    """What decides the optimisation; `schedule` are the arguments of `factor`, `weights` of the losses."""

    epochs: int
    images: int
    learning_rate: float
    head_learning_rate: float
    weight_decay: float
    schedule_update: str
    schedule: Mapping[str, Any]
    weights: Mapping[str, float]


def train_embedding(
    model: CSDN,
    text_table: Tensor,
    feed: Feed,
    settings: EmbeddingSettings,
    state: StageState,
    report: Callable[..., None],
    pace: Pace | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place, from the last checkpoint of `state` if there is one; returns the log's rows.

    text_table: [identities, d] fused text features, constants of this stage.
    """
    device = text_table.device
    optimizer = build_optimizer(model, settings)
    first, start, rows = restore(model, optimizer, state)
    log = LossLog(feed.steps_per_epoch, rows)
    total = settings.epochs * feed.steps_per_epoch
    pace = pace or Pace()
    model.train()
    for epoch in range(first, settings.epochs):
        for batch in feed.epoch(epoch, start):
            rate = set_learning_rates(optimizer, settings, epoch, batch.step / feed.steps_per_epoch)
            losses = training_step(model, optimizer, batch, text_table, settings, device)
            done = batch.step + 1
            last = done == feed.steps_per_epoch
            if log.add(losses, due=last, epoch=epoch, step=epoch * feed.steps_per_epoch + done):
                log.rows[-1]["learning_rate"] = rate
                report(log.rows[-1]["step"], total, {"loss": log.rows[-1]["total"]})
                if pace.due():
                    with pace.saving():
                        save(model, optimizer, state, epoch + last, 0 if last else done, log.rows)
        start = 0
    return log.rows


def training_step(
    model: CSDN,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    text_table: Tensor,
    settings: EmbeddingSettings,
    device: torch.device,
) -> dict[str, Tensor]:
    """One Adam step on one batch; returns its losses (scalars)."""
    losses = embedding_losses(
        model,
        batch.visible_view1.to(device, non_blocking=True),
        batch.visible_view2.to(device, non_blocking=True),
        batch.infrared.to(device, non_blocking=True),
        batch.labels.to(device, non_blocking=True),
        text_table,
        instances=settings.images,
        weights=settings.weights,
    )
    optimizer.zero_grad(set_to_none=True)
    losses["total"].backward()
    optimizer.step()
    return losses


def build_optimizer(model: CSDN, settings: EmbeddingSettings) -> torch.optim.Adam:
    """Adam, coupled weight decay on all that trains; GeM's p, BNNecks and classifiers at their own rate."""
    heads = list(model.head_parameters())
    of_heads = {id(parameter) for parameter in heads}
    backbone = [parameter for parameter in model.image_parameters() if id(parameter) not in of_heads]
    groups = [
        {"params": backbone, "lr": settings.learning_rate, "base": settings.learning_rate},
        {"params": heads, "lr": settings.head_learning_rate, "base": settings.head_learning_rate},
    ]
    return torch.optim.Adam(groups, weight_decay=settings.weight_decay, fused=True)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, settings: EmbeddingSettings, epoch: int, share: float
) -> float:
    """Set each group's rate for this step (`share` of the epoch is done); returns the backbone's."""
    at = epoch + share if settings.schedule_update == "step" else epoch
    scale = factor(at, epochs=settings.epochs, **settings.schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * scale
    return optimizer.param_groups[0]["lr"]


def save(
    model: CSDN,
    optimizer: torch.optim.Optimizer,
    state: StageState,
    epoch: int,
    step: int,
    rows: list[dict[str, Any]],
) -> None:
    """Checkpoint with the plan's position: the next batch is row `step` of `epoch`."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= optimizer_tensors(optimizer, "optimizer.")
    state.save({"epoch": epoch, "step": step, "log": rows}, tensors)


def restore(
    model: CSDN, optimizer: torch.optim.Optimizer, state: StageState
) -> tuple[int, int, list[dict[str, Any]]]:
    """(epoch, step, log) to go on from: the start, or the last checkpoint, then loaded into both."""
    saved = state.load()
    if saved is None:
        return 0, 0, []
    position, tensors = saved
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    restore_optimizer(optimizer, tensors, "optimizer.")
    return position["epoch"], position["step"], position["log"]
