"""Stage 1 from files to files: embed each training image once, learn the prompts, learn their integration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from csdn.data.feed import ImageWalk
from csdn.data.plan import pair_plan, pooled_plan
from csdn.data.reading import shards_at
from csdn.data.records import MODALITIES
from csdn.device import configure_torch
from csdn.files import replace_folder, write_json
from csdn.model import CSDN, folded
from csdn.params import Params, PhaseParams
from csdn.state import StageState, open_state
from csdn.training.inputs import TrainingInputs, training_inputs
from csdn.training.log import write_log
from csdn.training.prompt_stage import IntegrationPhase, Phase, PhaseSettings, PromptPhase, train_phase
from csdn.walk import Embed, Embedder, MakeEmbeds, embed_all, embedded_here

# progress(phase, unit, images of a unit) gives a context: its value is called report(done, total, figures).
EMBED_BATCH = 128  # images; a constant, since another one would change the last digits

Report = Callable[..., None]
Progress = Callable[..., AbstractContextManager[Report]]


def run_prompts(
    params: Params,
    data: Path,
    out: Path,
    metrics: Path,
    progress: Progress,
    embedder: Embedder = embedded_here,
) -> Mapping[str, float]:
    """Run stage 1; writes `out` (prompts.safetensors, config.json, log.csv) and the returned `metrics`.

    embedder: this one, or csdn.cluster's.
    """
    device = configure_torch(params.scaling.threads, params.scaling.device)
    inputs = training_inputs(params, data, "prompts")
    model = inputs.model.to(device).eval()
    with open_state("prompts", inputs.key) as state:
        with progress("embed", "images") as report:
            embedded = partial(embedder, *image_walk(inputs, params, data), params.scaling, device)
            features = embed_all(embedded, len(inputs.table), state.part("embeddings"), report)
        embeddings = torch.from_numpy(features["embeddings"]).to(device)
        labels = torch.from_numpy(inputs.table.label).to(device)
        prompts = prompt_phase(inputs, params, embeddings, labels)
        rows = _train(prompts, params.prompts.prompts, params.seed, state, progress)
        integration = integration_phase(inputs, params, embeddings, labels)
        rows += _train(integration, params.prompts.integration, params.seed, state, progress)
        figures = naming_figures(model, embeddings, labels, inputs.table.modality)
        write_prompts(inputs, out, rows)
        write_json(metrics, figures)
    return figures


def image_walk(inputs: TrainingInputs, params: Params, data: Path) -> tuple[ImageWalk, MakeEmbeds]:
    """Every training image once, and what makes its raw embedding [d]: the frozen encoder, in evaluation."""
    model = params.model
    walk = ImageWalk(inputs.table, shards_at(params, data), model.image_size, model.normalize, EMBED_BATCH)
    return walk, partial(image_embeddings, folded(inputs.model))


def image_embeddings(model: CSDN, device: torch.device) -> dict[str, Embed]:
    return {"embeddings": model.to(device).image_embeddings}


def prompt_phase(inputs: TrainingInputs, params: Params, embeddings: Tensor, labels: Tensor) -> PromptPhase:
    """Phase "prompts" over the plan of pairs."""
    table = inputs.table

    def rows(epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return pair_plan(table.label, table.modality, params.prompts.prompts.batch, params.seed, epoch)

    return PromptPhase(inputs.model, embeddings, labels, rows)


def integration_phase(
    inputs: TrainingInputs, params: Params, embeddings: Tensor, labels: Tensor
) -> IntegrationPhase:
    """Phase "integration" over all images; each person's two text features are computed here, once."""
    with torch.no_grad():
        visible, infrared = (inputs.model.text_features(modality.value) for modality in MODALITIES)

    def rows(epoch: int) -> list[np.ndarray]:
        return pooled_plan(len(inputs.table), params.prompts.integration.batch, params.seed, epoch)

    return IntegrationPhase(inputs.model, embeddings, labels, visible, infrared, rows, params.seed)


def _train(
    phase: Phase, params: PhaseParams, seed: int, state: StageState, progress: Progress
) -> list[dict[str, Any]]:
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


def write_prompts(inputs: TrainingInputs, out: Path, rows: list[dict[str, Any]]) -> None:
    """Tokens, SII and the fused text table [identities, d], whole or not at all."""
    model = inputs.model
    tensors = {f"prompts.{name}": tensor for name, tensor in model.prompts.state_dict().items()}
    tensors |= {f"integration.{name}": tensor for name, tensor in model.integration.state_dict().items()}
    with torch.no_grad():
        tensors["fused_text"] = model.fused_text_features()
    with replace_folder(out) as folder:
        data = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        (folder / "prompts.safetensors").write_bytes(data)
        write_json(folder / "config.json", {"people": inputs.people, **model.config.to_json()})
        write_log(folder / "log.csv", rows)
