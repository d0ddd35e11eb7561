"""Stage 1's parts: images embedded once, the two phases over them, and how well texts name images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csdn.data.feed import ImageWalk
from csdn.data.plan import pair_plan, pooled_plan
from csdn.data.reading import shards_at
from csdn.data.records import MODALITIES
from csdn.model import CSDN, folded
from csdn.params import Params, PhaseParams
from csdn.state import StageState
from csdn.training.inputs import TrainingInputs
from csdn.training.prompt_stage import IntegrationPhase, Phase, PhaseSettings, PromptPhase, train_phase
from csdn.walk import Embed, MakeEmbeds

EMBED_BATCH = 128  # images; a constant, since another one would change the last digits

Report = Callable[..., None]
# progress(phase, unit, images of a unit) gives a context: its value is called report(done, total, figures).
Progress = Callable[..., AbstractContextManager[Report]]


def image_walk(inputs: TrainingInputs, params: Params, data: Path) -> tuple[ImageWalk, MakeEmbeds]:
    """Every training image once, and what makes its raw embedding [d]: the frozen encoder, in evaluation."""
    model = params.model
    walk = ImageWalk(inputs.table, shards_at(params, data), model.image_size, model.normalize, EMBED_BATCH)
    return walk, partial(image_embeddings, folded(inputs.model))


def image_embeddings(model: CSDN, device: torch.device) -> dict[str, Embed]:
    return {"embeddings": model.to(device).image_embeddings}


def prompt_phase(
    inputs: TrainingInputs, params: Params, embeddings: Tensor, labels: Tensor, others: Tensor | None = None
) -> PromptPhase:
    """Phase "prompts" over the plan of pairs; others: stand-ins [m, d] for images of people without any."""
    table = inputs.table

    def rows(epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return pair_plan(table.label, table.modality, params.prompts.prompts.batch, params.seed, epoch)

    return PromptPhase(inputs.model, embeddings, labels, rows, others)


def integration_phase(
    inputs: TrainingInputs, params: Params, embeddings: Tensor, labels: Tensor
) -> IntegrationPhase:
    """Phase "integration" over all images; each person's two text features are computed here, once."""
    with torch.no_grad():
        visible, infrared = (inputs.model.text_features(modality.value) for modality in MODALITIES)

    def rows(epoch: int) -> list[np.ndarray]:
        return pooled_plan(len(inputs.table), params.prompts.integration.batch, params.seed, epoch)

    return IntegrationPhase(inputs.model, embeddings, labels, visible, infrared, rows, params.seed)


def learn(
    phase: Phase, params: PhaseParams, seed: int, state: StageState, progress: Progress
) -> list[dict[str, Any]]:
    """Train a phase from its last checkpoint on; returns its rows of the log."""
    schedule = params.model_dump(
        include={"learning_rate", "warmup_epochs", "warmup_learning_rate", "final_learning_rate"}
    )
    settings = PhaseSettings(params.epochs, params.weight_decay, params.update, schedule)
    with progress(phase.name, "steps", images=np.size(phase.plan(0)[0])) as report:
        return train_phase(phase, settings, state.part(phase.name), report)


@torch.inference_mode()
def naming_figures(model: CSDN, embeddings: Tensor, labels: Tensor, modality: np.ndarray) -> dict[str, float]:
    """How well texts name the training images, in %: `<text>_names_<modality>` for each text and modality."""
    texts = {name.value: model.text_features(name.value) for name in MODALITIES}
    texts["fused"] = model.fused_text_features()
    figures = {}
    for name, text in texts.items():
        right = ((embeddings @ text.T).argmax(dim=1) == labels).cpu().numpy()
        for code, of in enumerate(MODALITIES):
            figures[f"{name}_names_{of.value}"] = round(100 * float(right[modality == code].mean()), 3)
    return figures
