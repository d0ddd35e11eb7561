"""Stage 2: the image encoder learns to tell people, tied to the fused text of each (docs/method.md).

`train_embedding` is the loop; it knows tensors and batches, not where they come from. The same loop runs in
the plain process and in each of several workers, which then take one step together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from csdn.model import CSDN
from csdn.pace import Pace
from csdn.training.adam import Adam
from csdn.training.checkpoint import model_tensors, optimizer_tensors, restore_model, restore_optimizer
from csdn.training.collectives import any_rank, average_gradients, distributed, world
from csdn.training.divergence import check_tensors
from csdn.training.log import LossLog
from csdn.training.losses import embedding_losses
from csdn.training.schedules import factor
from csdn.training.waiting import Waiting

ADVICE = (
    "lower learning_rate and head_learning_rate in params.yaml (section embedding; warm, where training goes "
    "on from a champion), or set training.precision to float32 where it is another"
)


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


class State(Protocol):
    """Where the loop saves, so that another run of it goes on there; see csdn.state.StageState.

    `leaving` is true where this machine is about to go: now is the time to save.
    """

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None: ...
    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None: ...
    def leaving(self) -> bool: ...


@dataclass(frozen=True)
class EmbeddingSettings:
    """What decides the optimisation; `schedule` are the arguments of `factor`, `weights` of the losses."""

    epochs: int
    images: int
    precision: str
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
    state: State,
    report: Callable[..., None],
    pace: Pace | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place, from the last checkpoint of `state` if there is one; returns the log's rows.

    text_table: [identities, d] fused text features, constants of this stage.
    Each of several workers (torch.distributed) calls it with its part of every batch; all save together.
    Raises Diverged where losses or weights are not finite: before they are saved, in all workers.
    """
    only_images_train(model)
    optimizer = build_optimizer(model, settings)
    first, start, rows = restore(model, optimizer, state)
    log = LossLog(feed.steps_per_epoch, ADVICE, rows)
    trained = distributed(model.train())
    pace, waiting = pace or Pace(), Waiting()
    for epoch in range(first, settings.epochs):
        for batch in waiting.timed(feed.epoch(epoch, start)):
            rate = set_learning_rates(optimizer, settings, epoch, batch.step / feed.steps_per_epoch)
            losses = training_step(trained, optimizer, batch, text_table, settings)
            done = batch.step + 1
            last = done == feed.steps_per_epoch
            step = epoch * feed.steps_per_epoch + done
            if log.add(losses, rate, due=last, epoch=epoch, step=step):
                total = settings.epochs * feed.steps_per_epoch
                report(step, total, {"loss": log.rows[-1]["total"], "waiting": waiting.share()})
                if due_to_save(pace, state):
                    with pace.saving():
                        save(model, optimizer, state, epoch + last, 0 if last else done, log.rows)
        start = 0
    check_tensors(model_tensors(model), log.rows[-1], ADVICE)
    return log.rows


def only_images_train(model: CSDN) -> None:
    """The text is constant here; workers would wait for its gradients."""
    model.requires_grad_(False)
    for parameter in model.image_parameters():
        parameter.requires_grad_(True)


def due_to_save(pace: Pace, state: State) -> bool:
    """Whether to save now; the same answer in all workers, whose clocks differ: the first one's counts."""
    leaving = state.leaving()
    return any_rank(leaving or (world()[0] == 0 and pace.due()))


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    text_table: Tensor,
    settings: EmbeddingSettings,
) -> dict[str, Tensor]:
    """One Adam step on one batch; returns its losses (scalars). `model`: a CSDN, or `distributed` of one."""
    device = text_table.device
    views = (batch.visible_view1, batch.visible_view2, batch.infrared)
    losses = embedding_losses(
        model,
        *(view.to(device, non_blocking=True) for view in views),
        batch.labels.to(device, non_blocking=True),
        text_table,
        instances=settings.images,
        weights=settings.weights,
        precision=settings.precision,
    )
    optimizer.zero_grad(set_to_none=True)
    losses["total"].backward()
    average_gradients(model)
    optimizer.step()
    return losses


def build_optimizer(model: CSDN, settings: EmbeddingSettings) -> Adam:
    """Adam, coupled weight decay on all that trains; GeM's p, BNNecks and classifiers at their own rate."""
    heads = list(model.head_parameters())
    of_heads = {id(parameter) for parameter in heads}
    backbone = [parameter for parameter in model.image_parameters() if id(parameter) not in of_heads]
    groups = [
        {"params": backbone, "lr": settings.learning_rate, "base": settings.learning_rate},
        {"params": heads, "lr": settings.head_learning_rate, "base": settings.head_learning_rate},
    ]
    return Adam(groups, weight_decay=settings.weight_decay)


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
    state: State,
    epoch: int,
    step: int,
    rows: list[dict[str, Any]],
) -> None:
    """Checkpoint with the plan's position: the next batch is row `step` of `epoch`. Raises Diverged."""
    tensors = model_tensors(model) | optimizer_tensors(optimizer, "optimizer.")
    check_tensors(tensors, rows[-1], ADVICE)
    state.save({"epoch": epoch, "step": step, "log": rows}, tensors)


def restore(
    model: CSDN, optimizer: torch.optim.Optimizer, state: State
) -> tuple[int, int, list[dict[str, Any]]]:
    """(epoch, step, log) to go on from: the start, or the last checkpoint, then loaded into both."""
    saved = state.load()
    if saved is None:
        return 0, 0, []
    position, tensors = saved
    restore_model(model, tensors)
    restore_optimizer(optimizer, tensors, "optimizer.")
    return position["epoch"], position["step"], position["log"]
