"""Stage 1: text tokens for each person and modality, then their integration (docs/method.md).

Image embeddings are constants here (frozen encoder, running statistics), so each phase is a loop over rows of
a plan and a table. In phase "prompts" only the tokens train; in phase "integration" only SII.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from csdn.losses import supcon
from csdn.model import CSDN
from csdn.pace import Pace
from csdn.randomness import Stream, generator
from csdn.state import StageState
from csdn.training.adam import Adam
from csdn.training.checkpoint import optimizer_tensors, restore_optimizer
from csdn.training.divergence import check_tensors
from csdn.training.log import LossLog
from csdn.training.schedules import warmup_cosine

NOBODY = -1  # label of an image of none of the people


@dataclass(frozen=True)
class PhaseSettings:
    """Optimisation of one phase; `schedule` are the arguments of `warmup_cosine`."""

    epochs: int
    weight_decay: float
    schedule_update: str
    schedule: Mapping[str, float]


class Phase(Protocol):
    """What the shared loop needs: the parameters, an epoch's rows of the plan, and the loss of a row."""

    name: str

    def parameters(self) -> list[torch.nn.Parameter]: ...
    def plan(self, epoch: int) -> Sequence[Any]: ...
    def loss(self, row: Any, epoch: int, step: int) -> Mapping[str, Tensor]: ...


@dataclass
class PromptPhase:
    """Phase "prompts": the tokens of each person against the person's images, modality by modality.

    embeddings: [images, d], raw image embeddings; labels: [images]; a row of the plan is a pair of
    ordinals (visible [b], infrared [b]) of the same people. others: [m, d], what stands for images of
    people who have none here: no text of a person is to fit them.
    """

    model: CSDN
    embeddings: Tensor
    labels: Tensor
    rows: Callable[[int], Sequence[tuple[np.ndarray, np.ndarray]]]
    others: Tensor | None = None
    name: str = "prompts"

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.model.prompts.parameters())

    def plan(self, epoch: int) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        return self.rows(epoch)

    def loss(self, row: tuple[np.ndarray, np.ndarray], epoch: int, step: int) -> Mapping[str, Tensor]:
        ordinals = torch.from_numpy(np.concatenate(row)).to(self.labels.device)
        labels = self.labels[ordinals]
        # A person who stands in the row twice is encoded once: the gradient adds up in the gather.
        people, place = torch.unique(labels.chunk(2)[0], return_inverse=True)
        text = [self.model.text_features(modality, people)[place] for modality in ("visible", "infrared")]
        return contrast(self.embeddings[ordinals], torch.cat(text), labels, self.others)


@dataclass
class IntegrationPhase:
    """Phase "integration": SII fuses the two text features of a person, which are constants now.

    visible_text, infrared_text: [identities, d]; a row of the plan is ordinals [b], of both modalities.
    """

    model: CSDN
    embeddings: Tensor
    labels: Tensor
    visible_text: Tensor
    infrared_text: Tensor
    rows: Callable[[int], Sequence[np.ndarray]]
    seed: int
    name: str = "integration"

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.model.integration.parameters())

    def plan(self, epoch: int) -> Sequence[np.ndarray]:
        return self.rows(epoch)

    def loss(self, row: np.ndarray, epoch: int, step: int) -> Mapping[str, Tensor]:
        ordinals = torch.from_numpy(row).to(self.labels.device)
        labels = self.labels[ordinals]
        visible = self.visible_text[labels]
        keep = self._keep(visible, epoch, step)
        fused = self.model.integration(visible, self.infrared_text[labels], keep=keep)
        return contrast(self.embeddings[ordinals], fused, labels)

    def _keep(self, like: Tensor, epoch: int, step: int) -> Tensor:
        """Dropout's keep mask [b, d], counted by (seed, epoch, step)."""
        draws = generator(self.seed, Stream.DROPOUT, epoch, step).random(like.shape)
        return torch.from_numpy(draws >= self.model.integration.dropout).to(like.device)


def contrast(images: Tensor, text: Tensor, labels: Tensor, others: Tensor | None = None) -> dict[str, Tensor]:
    """Both directions of SupCon and their sum; images, text: [n, d]; labels: [n] of both.

    others: [m, d], further candidates for a text, images of nobody here.
    """
    image_to_text = supcon(images, text, labels, labels)
    candidates, owners = images, labels
    if others is not None:
        candidates = torch.cat([images, others])
        owners = torch.cat([labels, labels.new_full((len(others),), NOBODY)])
    text_to_image = supcon(text, candidates, labels, owners)
    return {
        "loss": image_to_text + text_to_image,
        "image_to_text": image_to_text,
        "text_to_image": text_to_image,
    }


def train_phase(
    phase: Phase,
    settings: PhaseSettings,
    state: StageState,
    report: Callable[..., None],
    pace: Pace | None = None,
) -> list[dict[str, Any]]:
    """Train one phase, from its last checkpoint if `state` holds one; returns the log's rows.

    Raises Diverged where losses or parameters are not finite, before they are saved.
    """
    parameters = phase.parameters()
    if not parameters:  # variants of SII without weights have nothing to learn
        return []
    optimizer = Adam(parameters, weight_decay=settings.weight_decay)
    first, start, rows = _restore(phase, optimizer, state)
    steps = len(phase.plan(0))
    log = LossLog(steps, _advice(phase), rows)
    total = settings.epochs * steps
    pace = pace or Pace()
    for epoch in range(first, settings.epochs):
        plan = phase.plan(epoch)
        for step in range(start, steps):
            at = epoch + step / steps if settings.schedule_update == "step" else epoch
            rate = warmup_cosine(at, epochs=settings.epochs, **settings.schedule)
            optimizer.param_groups[0]["lr"] = rate
            losses = phase.loss(plan[step], epoch, step)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            optimizer.step()
            done, last = epoch * steps + step + 1, step + 1 == steps
            if log.add(losses, rate, due=last, phase=phase.name, epoch=epoch, step=done):
                report(done, total, {"loss": log.rows[-1]["loss"]})
                if pace.due() or done == total:
                    with pace.saving():
                        _save(phase, optimizer, state, epoch + last, 0 if last else step + 1, log.rows)
        start = 0
    return log.rows


def _save(
    phase: Phase,
    optimizer: torch.optim.Optimizer,
    state: StageState,
    epoch: int,
    step: int,
    rows: list[dict[str, Any]],
) -> None:
    """Checkpoint with the plan's position: the next row is row `step` of `epoch`. Raises Diverged."""
    tensors = {f"parameter.{n}": parameter for n, parameter in enumerate(phase.parameters())}
    tensors |= optimizer_tensors(optimizer, "optimizer.")
    check_tensors(tensors, rows[-1], _advice(phase))
    state.save({"epoch": epoch, "step": step, "log": rows}, tensors)


def _advice(phase: Phase) -> str:
    return f"lower prompts.{phase.name}.learning_rate in params.yaml"


def _restore(
    phase: Phase, optimizer: torch.optim.Optimizer, state: StageState
) -> tuple[int, int, list[dict[str, Any]]]:
    saved = state.load()
    if saved is None:
        return 0, 0, []
    position, tensors = saved
    with torch.no_grad():
        for number, parameter in enumerate(phase.parameters()):
            parameter.copy_(tensors[f"parameter.{number}"])
    restore_optimizer(optimizer, tensors, "optimizer.")
    return position["epoch"], position["step"], position["log"]
