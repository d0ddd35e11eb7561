"""Stage 1 from files to files: embed each training image once, learn the prompts, learn their integration.

Where training goes on from a champion, only new people's prompts are learnt, unless all are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from csdn.device import configure_torch
from csdn.files import replace_folder, write_json
from csdn.params import Params
from csdn.state import StageState, open_state
from csdn.training.inputs import TrainingInputs, training_inputs
from csdn.training.log import write_log
from csdn.training.newcomers import new_rows, newcomers, put_back, stand_ins
from csdn.training.prompt_parts import (
    Progress,
    image_walk,
    integration_phase,
    learn,
    naming_figures,
    prompt_phase,
)
from csdn.training.warm import WarmStart
from csdn.walk import Embedder, embed_all, embedded_here

LOG_COLUMNS = ("phase", "epoch", "step", "loss", "image_to_text", "text_to_image", "learning_rate")

# What stage 1 has learnt: the fused text table [identities, d], the log's rows, the figures.
Learnt = tuple[Tensor, list[dict[str, Any]], dict[str, float]]
# embed(inputs, state) gives the images' embeddings [images, d] and labels [images].
EmbedImages = Callable[[TrainingInputs, StageState], tuple[Tensor, Tensor]]


def run_prompts(
    params: Params,
    data: Path,
    out: Path,
    metrics: Path,
    progress: Progress,
    embedder: Embedder = embedded_here,
    warm: WarmStart | None = None,
) -> Mapping[str, float]:
    """Run stage 1; writes `out` (prompts.safetensors, config.json, log.csv) and the returned `metrics`.

    embedder: this one, or csdn.cluster's. warm: the champion to go on from, if any.
    """
    device = configure_torch(params.scaling.threads, params.scaling.device)
    inputs = training_inputs(params, data, "prompts", warm=warm)
    inputs.model.to(device).eval()

    def embed(inputs: TrainingInputs, state: StageState) -> tuple[Tensor, Tensor]:
        with progress("embed", "images") as report:
            embedded = partial(embedder, *image_walk(inputs, params, data), params.scaling, device)
            features = embed_all(embedded, len(inputs.table), state.part("embeddings"), report)
        arrays = features["embeddings"], inputs.table.label
        return tuple(torch.from_numpy(array).to(device) for array in arrays)

    learn_stage = learn_new if inputs.known and params.warm.prompts == "new" else learn_all
    with open_state("prompts", inputs.key) as state:
        fused, rows, figures = learn_stage(inputs, params, embed, state, progress)
        write_prompts(inputs, fused, out, rows)
        write_json(metrics, figures)
    return figures


def learn_all(
    inputs: TrainingInputs, params: Params, embed: EmbedImages, state: StageState, progress: Progress
) -> Learnt:
    """Both phases over the images of all people."""
    model, settings = inputs.model, params.prompts
    embeddings, labels = embed(inputs, state)
    prompts = prompt_phase(inputs, params, embeddings, labels)
    rows = learn(prompts, settings.prompts, params.seed, state, progress)
    integration = integration_phase(inputs, params, embeddings, labels)
    rows += learn(integration, settings.integration, params.seed, state, progress)
    figures = naming_figures(model, embeddings, labels, inputs.table.modality)
    with torch.no_grad():
        return model.fused_text_features(), rows, figures


def learn_new(
    inputs: TrainingInputs, params: Params, embed: EmbedImages, state: StageState, progress: Progress
) -> Learnt:
    """Phase "prompts" over the images of new people; SII and the known people's rows stay the champion's.

    The figures are of new people's images among the texts of all: there are none where nobody is new.
    """
    new = new_rows(inputs)
    figures: dict[str, float] = {"new_people": len(new)}
    if not len(new):
        return put_back(inputs, None, new), [], figures
    theirs = newcomers(inputs, new)
    embeddings, labels = embed(theirs, state)
    phase = prompt_phase(theirs, params, embeddings, labels, stand_ins(inputs, new, embeddings))
    rows = learn(phase, params.prompts.prompts, params.seed, state, progress)
    fused = put_back(inputs, theirs, new)
    among_all = torch.from_numpy(new).to(labels.device)[labels]
    return fused, rows, figures | naming_figures(inputs.model, embeddings, among_all, theirs.table.modality)


def write_prompts(
    inputs: TrainingInputs, fused: Tensor, out: Path, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Tokens, SII and the fused text table [identities, d], whole or not at all."""
    model = inputs.model
    tensors = {f"prompts.{name}": tensor for name, tensor in model.prompts.state_dict().items()}
    tensors |= {f"integration.{name}": tensor for name, tensor in model.integration.state_dict().items()}
    tensors["fused_text"] = fused
    with replace_folder(out) as folder:
        data = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        (folder / "prompts.safetensors").write_bytes(data)
        write_json(folder / "config.json", {"people": inputs.people, **model.config.to_json()})
        write_log(folder / "log.csv", rows, LOG_COLUMNS)
