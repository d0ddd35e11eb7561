"""Stage 1 learns a text for each identity, in two phases.

Phase "prompts" trains four tokens for each identity and modality, so that the text features match the
identity's visible and infrared images. Phase "integration" trains SII, which fuses the two texts of an
identity. The image encoder is frozen: its embeddings are computed once, and each phase is a loop over batches
of them.

1. The losses of the two phases.
2. `train_phase`, the loop that both share.
3. `run_prompts`, the stage from files to files. Where training starts from a champion, it learns the
   prompts of new identities only, unless `warm_start.prompts` is "all".

docs/method.md has the whole method; csdn/losses.py the objective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from csdn.data.catalog import MODALITIES
from csdn.data.checkpoint_store import CheckpointStore, CheckpointTimer, open_state
from csdn.data.features import Embed, Embedder, MakeEmbeds, extract_features, extract_local
from csdn.data.loader import ImageBatches
from csdn.data.rng import Stream, generator
from csdn.data.sampler import pair_plan, pooled_plan
from csdn.data.shards import shards_at
from csdn.losses import supcon_loss
from csdn.model import CSDN, fuse_batch_norms
from csdn.model.device import configured_device, in_precision
from csdn.params import Params, PhaseParams
from csdn.runtime.files import atomic_folder, write_json
from csdn.training.checkpoint import restore_training, save_training
from csdn.training.log import LossLog, write_log
from csdn.training.schedules import warmup_cosine
from csdn.training.warm_start import (
    ChampionWeights,
    TrainingInputs,
    WarmStart,
    merge_prompts,
    new_identities,
    new_rows,
    proxy_negatives,
    training_inputs,
)

# 1. The losses of the two phases.

NO_IDENTITY = -1  # label of a proxy negative: it is a positive of no text


class Phase(Protocol):
    """What the loop needs of a phase: its parameters, the batches of an epoch, and the losses of a batch."""

    name: str

    def parameters(self) -> list[torch.nn.Parameter]: ...
    def plan(self, epoch: int) -> Sequence[Any]: ...
    def loss(self, batch: Any, epoch: int, step: int) -> Mapping[str, Tensor]: ...


@dataclass
class PromptPhase:
    """Phase "prompts": the tokens train; each image has its identity's text of its own modality.

    embeddings: [images, d], not normalised; labels: [images]; plan(epoch): batches as pairs of image indices
    (visible [b], infrared [b]) of the same identities, row by row; proxies: [m, d], embeddings in place of
    images of further identities, negatives for every text.
    """

    model: CSDN
    embeddings: Tensor
    labels: Tensor
    plan: Callable[[int], Sequence[tuple[np.ndarray, np.ndarray]]]
    proxies: Tensor | None = None
    name: str = "prompts"

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.model.prompts.parameters())

    def loss(self, batch: tuple[np.ndarray, np.ndarray], epoch: int, step: int) -> Mapping[str, Tensor]:
        indices = torch.from_numpy(np.concatenate(batch)).to(self.labels.device)
        labels = self.labels[indices]
        # An identity that is in the batch twice is encoded once; autograd adds up its gradients.
        people, position = torch.unique(labels.chunk(2)[0], return_inverse=True)
        text = [self.model.text_features(modality, people)[position] for modality in ("visible", "infrared")]
        return contrastive_losses(self.embeddings[indices], torch.cat(text), labels, self.proxies)


@dataclass
class IntegrationPhase:
    """Phase "integration": SII trains, its fused texts against the images of both modalities.

    embeddings: [images, d], not normalised; labels: [images]; visible_text, infrared_text: [identities, d],
    constants of this phase; plan(epoch): batches of image indices [b]; seed: of dropout.
    """

    model: CSDN
    embeddings: Tensor
    labels: Tensor
    visible_text: Tensor
    infrared_text: Tensor
    plan: Callable[[int], Sequence[np.ndarray]]
    seed: int
    name: str = "integration"

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.model.integration.parameters())

    def loss(self, batch: np.ndarray, epoch: int, step: int) -> Mapping[str, Tensor]:
        indices = torch.from_numpy(batch).to(self.labels.device)
        labels = self.labels[indices]
        visible = self.visible_text[labels]
        # The dropout mask [b, d] is a function of (seed, epoch, step), so that a resumed run draws the same.
        draws = generator(self.seed, Stream.DROPOUT, epoch, step).random(visible.shape)
        keep = torch.from_numpy(draws >= self.model.integration.dropout).to(visible.device)
        fused = self.model.integration(visible, self.infrared_text[labels], keep=keep)
        return contrastive_losses(self.embeddings[indices], fused, labels)


def contrastive_losses(
    images: Tensor, text: Tensor, labels: Tensor, proxies: Tensor | None = None
) -> dict[str, Tensor]:
    """SupCon from images to texts and from texts to images, and their sum.

    images, text: [n, d]; labels: [n], of both; proxies: [m, d], further negatives for the texts.
    """
    image_to_text = supcon_loss(images, text, labels, labels)
    candidates, candidate_labels = images, labels
    if proxies is not None:
        candidates = torch.cat([images, proxies])
        candidate_labels = torch.cat([labels, labels.new_full((len(proxies),), NO_IDENTITY)])
    text_to_image = supcon_loss(text, candidates, labels, candidate_labels)
    return {
        "loss": image_to_text + text_to_image,
        "image_to_text": image_to_text,
        "text_to_image": text_to_image,
    }


# 2. The loop.


def train_phase(
    phase: Phase,
    settings: PhaseParams,
    state: CheckpointStore,
    report: Callable[..., None],
    timer: CheckpointTimer | None = None,
) -> list[dict[str, Any]]:
    """Train one phase, from its last checkpoint if `state` holds one; returns the log's rows.

    Raises Diverged where losses or parameters are not finite, before they are saved.
    """
    parameters = phase.parameters()
    if not parameters:  # some variants of SII have no weights to learn
        return []
    trained = nn.ParameterList(parameters)
    optimizer = torch.optim.Adam(parameters, weight_decay=settings.weight_decay, fused=True)
    first_epoch, first_step, rows = restore_training(state, trained, optimizer)
    steps = len(phase.plan(0))
    log = LossLog(steps, _advice(phase), rows)
    total = settings.epochs * steps
    timer = timer or CheckpointTimer()
    for epoch in range(first_epoch, settings.epochs):
        plan = phase.plan(epoch)
        for step in range(first_step, steps):
            rate = learning_rate(settings, epoch, step / steps)
            optimizer.param_groups[0]["lr"] = rate
            losses = phase.loss(plan[step], epoch, step)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            optimizer.step()
            done, last = epoch * steps + step + 1, step + 1 == steps
            if log.add(losses, rate, due=last, phase=phase.name, epoch=epoch, step=done):
                report(done, total, {"loss": log.rows[-1]["loss"]})
                if timer.due() or done == total:
                    with timer.saving():
                        position = (epoch + 1, 0) if last else (epoch, step + 1)
                        save_training(state, trained, optimizer, position, log.rows, _advice(phase))
        first_step = 0
    return log.rows


def learning_rate(settings: PhaseParams, epoch: int, fraction: float) -> float:
    """The rate of a step before which `fraction` of the epoch is done."""
    names = {"epochs", "learning_rate", "warmup_epochs", "warmup_learning_rate", "final_learning_rate"}
    at = epoch + fraction if settings.lr_update == "step" else epoch
    return warmup_cosine(at, **settings.model_dump(include=names))


def _advice(phase: Phase) -> str:
    return f"lower prompts.{phase.name}.learning_rate in params.yaml"


# 3. The stage, from files to files.


BLOCK_PRODUCTS = 2**26  # images x texts that are compared at once, 256 MiB
EMBED_BATCH = 128  # images; not a parameter, because another size would change the last digits
LOG_COLUMNS = ("phase", "epoch", "step", "loss", "image_to_text", "text_to_image", "learning_rate")

Report = Callable[..., None]
# progress(phase, unit, images=images of a unit) is a context; its value is report(done, total, figures).
Progress = Callable[..., AbstractContextManager[Report]]
# The result of stage 1: the fused text table [identities, d], the log's rows, the figures.
Learnt = tuple[Tensor, list[dict[str, Any]], dict[str, float]]
# embed(inputs, state) computes the images' embeddings [images, d] and labels [images].
EmbedImages = Callable[[TrainingInputs, CheckpointStore], tuple[Tensor, Tensor]]


def run_prompts(
    params: Params,
    data: Path,
    out: Path,
    metrics: Path,
    progress: Progress,
    embedder: Embedder = extract_local,
    warm: WarmStart | None = None,
) -> Mapping[str, float]:
    """Run stage 1; writes `out` (prompts.safetensors, config.json, log.csv) and the returned `metrics`.

    embedder: `extract_local`, or csdn.cluster's. warm: the champion to start from, if any.
    """
    device = configured_device(params)
    inputs = training_inputs(params, data, "prompts", warm=warm)
    inputs.model.to(device).eval()

    def embed(inputs: TrainingInputs, state: CheckpointStore) -> tuple[Tensor, Tensor]:
        with progress("embed", "images") as report:
            embedded = partial(embedder, *image_batches(inputs, params, data), params, device)
            features = extract_features(embedded, len(inputs.table), state.part("embeddings"), report)
        labels = torch.from_numpy(inputs.table.label).to(device)
        return torch.from_numpy(features["embeddings"]).to(device), labels

    champion = inputs.champion if params.warm_start.prompts == "new" else None
    learn = partial(learn_new, champion) if champion else learn_all
    with open_state("prompts", inputs.key) as state:
        fused, rows, figures = learn(inputs, params, embed, state, progress)
        write_prompts(inputs, fused, out, rows)
        write_json(metrics, figures)
    return figures


def image_batches(inputs: TrainingInputs, params: Params, data: Path) -> tuple[ImageBatches, MakeEmbeds]:
    """Every training image once, and the frozen encoder (in evaluation mode) that embeds it: [d]."""
    model = params.model
    batches = ImageBatches(
        inputs.table, shards_at(params, data), model.image_size, model.normalize, EMBED_BATCH
    )
    return batches, partial(image_embeddings, fuse_batch_norms(inputs.model), params.training.precision)


def image_embeddings(model: CSDN, precision: str, device: torch.device) -> dict[str, Embed]:
    return {"embeddings": in_precision(model.to(device).image_embeddings, precision, device)}


def learn_all(
    inputs: TrainingInputs, params: Params, embed: EmbedImages, state: CheckpointStore, progress: Progress
) -> Learnt:
    """Both phases, over the images of all identities."""
    model, settings = inputs.model, params.prompts
    embeddings, labels = embed(inputs, state)
    rows = _train(prompt_phase(inputs, params, embeddings, labels), settings.tokens, state, progress)
    integration = integration_phase(inputs, params, embeddings, labels)
    rows += _train(integration, settings.integration, state, progress)
    figures = text_accuracy(model, embeddings, labels, inputs.table.modality)
    with torch.no_grad():
        return model.fused_text_features(), rows, figures


def learn_new(
    champion: ChampionWeights,
    inputs: TrainingInputs,
    params: Params,
    embed: EmbedImages,
    state: CheckpointStore,
    progress: Progress,
) -> Learnt:
    """Phase "prompts" over the images of new identities; SII and all other texts stay the champion's.

    The figures are of the new identities' images among the texts of all; without new identities there are
    none.
    """
    new = new_rows(inputs, champion)
    figures: dict[str, float] = {"new_people": len(new)}
    if not len(new):
        return merge_prompts(inputs, champion, None, new), [], figures
    new_inputs = new_identities(inputs, new)
    embeddings, labels = embed(new_inputs, state)
    proxies = proxy_negatives(inputs, new, embeddings)
    phase = prompt_phase(new_inputs, params, embeddings, labels, proxies)
    rows = _train(phase, params.prompts.tokens, state, progress)
    fused = merge_prompts(inputs, champion, new_inputs, new)
    labels_among_all = torch.from_numpy(new).to(labels.device)[labels]
    modality = new_inputs.table.modality
    return fused, rows, figures | text_accuracy(inputs.model, embeddings, labels_among_all, modality)


def prompt_phase(
    inputs: TrainingInputs, params: Params, embeddings: Tensor, labels: Tensor, proxies: Tensor | None = None
) -> PromptPhase:
    """Phase "prompts" over pairs of a visible and an infrared image; proxies: as in `PromptPhase`."""
    table = inputs.table

    def plan(epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return pair_plan(table.label, table.modality, params.prompts.tokens.batch_size, params.seed, epoch)

    return PromptPhase(inputs.model, embeddings, labels, plan, proxies)


def integration_phase(
    inputs: TrainingInputs, params: Params, embeddings: Tensor, labels: Tensor
) -> IntegrationPhase:
    """Phase "integration" over all images; the two text features of each identity are computed here, once."""
    with torch.no_grad():
        visible, infrared = (inputs.model.text_features(modality.value) for modality in MODALITIES)

    def plan(epoch: int) -> list[np.ndarray]:
        return pooled_plan(len(inputs.table), params.prompts.integration.batch_size, params.seed, epoch)

    return IntegrationPhase(inputs.model, embeddings, labels, visible, infrared, plan, params.seed)


def _train(
    phase: Phase, settings: PhaseParams, state: CheckpointStore, progress: Progress
) -> list[dict[str, Any]]:
    with progress(phase.name, "steps", images=np.size(phase.plan(0)[0])) as report:
        return train_phase(phase, settings, state.part(phase.name), report)


@torch.inference_mode()
def text_accuracy(model: CSDN, embeddings: Tensor, labels: Tensor, modality: np.ndarray) -> dict[str, float]:
    """Training images whose nearest text is their identity's, in %: `<text>_names_<modality>`.

    Three texts (visible, infrared, fused) on the images of each modality.
    """
    texts = {name.value: model.text_features(name.value) for name in MODALITIES}
    texts["fused"] = model.fused_text_features()
    figures = {}
    for name, text in texts.items():
        blocks = embeddings.split(max(1, BLOCK_PRODUCTS // len(text)))
        nearest = torch.cat([(block @ text.T).argmax(dim=1) for block in blocks])
        correct = (nearest == labels).cpu().numpy()
        for code, of in enumerate(MODALITIES):
            figures[f"{name}_names_{of.value}"] = round(100 * float(correct[modality == code].mean()), 3)
    return figures


def write_prompts(
    inputs: TrainingInputs, fused: Tensor, out: Path, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write tokens, SII and the fused text table [identities, d], the whole folder at once."""
    model = inputs.model
    tensors = {f"prompts.{name}": tensor for name, tensor in model.prompts.state_dict().items()}
    tensors |= {f"integration.{name}": tensor for name, tensor in model.integration.state_dict().items()}
    tensors["fused_text"] = fused
    with atomic_folder(out) as folder:
        data = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        (folder / "prompts.safetensors").write_bytes(data)
        write_json(folder / "config.json", {"people": inputs.people, **model.config.to_json()})
        write_log(folder / "log.csv", rows, LOG_COLUMNS)
