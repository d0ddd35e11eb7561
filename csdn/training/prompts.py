"""Stage 1: text tokens for each person and modality, then their integration (docs/method.md).

Image embeddings are constants here (frozen encoder, running statistics), so each phase is a loop over rows of
a plan and a table. In phase "prompts" only the tokens train; in phase "integration" only SII.
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
from torch import Tensor

from csdn.data.catalog import MODALITIES
from csdn.data.features import Embed, Embedder, MakeEmbeds, extract_features, extract_local
from csdn.data.loader import ImageBatches
from csdn.data.rng import Stream, generator
from csdn.data.sampler import pair_plan, pooled_plan
from csdn.data.shards import shards_at
from csdn.data.state import CheckpointTimer, StageState, open_state
from csdn.losses import supcon_loss
from csdn.model import CSDN, fuse_batch_norms
from csdn.model.device import configure_torch
from csdn.params import Params, PhaseParams
from csdn.runtime.files import atomic_folder, write_json
from csdn.training.checkpoint import optimizer_tensors, restore_optimizer
from csdn.training.inputs import TrainingInputs, training_inputs
from csdn.training.log import LossLog, check_tensors, write_log
from csdn.training.schedules import Adam, warmup_cosine
from csdn.training.warm_start import WarmStart, merge_prompts, new_identities, new_rows, proxy_negatives

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
    image_to_text = supcon_loss(images, text, labels, labels)
    candidates, owners = images, labels
    if others is not None:
        candidates = torch.cat([images, others])
        owners = torch.cat([labels, labels.new_full((len(others),), NOBODY)])
    text_to_image = supcon_loss(text, candidates, labels, owners)
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
    pace: CheckpointTimer | None = None,
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
    pace = pace or CheckpointTimer()
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


# Stage 1's parts: images embedded once, the two phases over them, and how well texts name images.


EMBED_BATCH = 128  # images; a constant, since another one would change the last digits

Report = Callable[..., None]
# progress(phase, unit, images of a unit) gives a context: its value is called report(done, total, figures).
Progress = Callable[..., AbstractContextManager[Report]]


def image_walk(inputs: TrainingInputs, params: Params, data: Path) -> tuple[ImageBatches, MakeEmbeds]:
    """Every training image once, and what makes its raw embedding [d]: the frozen encoder, in evaluation."""
    model = params.model
    walk = ImageBatches(inputs.table, shards_at(params, data), model.image_size, model.normalize, EMBED_BATCH)
    return walk, partial(image_embeddings, fuse_batch_norms(inputs.model))


def image_embeddings(model: CSDN, device: torch.device) -> dict[str, Embed]:
    return {"embeddings": model.to(device).image_embeddings}


def prompt_phase(
    inputs: TrainingInputs, params: Params, embeddings: Tensor, labels: Tensor, others: Tensor | None = None
) -> PromptPhase:
    """Phase "prompts" over the plan of pairs; others: stand-ins [m, d] for images of people without any."""
    table = inputs.table

    def rows(epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return pair_plan(table.label, table.modality, params.prompts.tokens.batch_size, params.seed, epoch)

    return PromptPhase(inputs.model, embeddings, labels, rows, others)


def integration_phase(
    inputs: TrainingInputs, params: Params, embeddings: Tensor, labels: Tensor
) -> IntegrationPhase:
    """Phase "integration" over all images; each person's two text features are computed here, once."""
    with torch.no_grad():
        visible, infrared = (inputs.model.text_features(modality.value) for modality in MODALITIES)

    def rows(epoch: int) -> list[np.ndarray]:
        return pooled_plan(len(inputs.table), params.prompts.integration.batch_size, params.seed, epoch)

    return IntegrationPhase(inputs.model, embeddings, labels, visible, infrared, rows, params.seed)


def learn(
    phase: Phase, params: PhaseParams, seed: int, state: StageState, progress: Progress
) -> list[dict[str, Any]]:
    """Train a phase from its last checkpoint on; returns its rows of the log."""
    schedule = params.model_dump(
        include={"learning_rate", "warmup_epochs", "warmup_learning_rate", "final_learning_rate"}
    )
    settings = PhaseSettings(params.epochs, params.weight_decay, params.lr_update, schedule)
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


# Stage 1 from files to files: embed each training image once, learn the prompts, learn their integration.
#
# Where training goes on from a champion, only new people's prompts are learnt, unless all are asked for.


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
    embedder: Embedder = extract_local,
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
            features = extract_features(embedded, len(inputs.table), state.part("embeddings"), report)
        arrays = features["embeddings"], inputs.table.label
        return tuple(torch.from_numpy(array).to(device) for array in arrays)

    learn_stage = learn_new if inputs.known and params.warm_start.prompts == "new" else learn_all
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
    rows = learn(prompts, settings.tokens, params.seed, state, progress)
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
        return merge_prompts(inputs, None, new), [], figures
    theirs = new_identities(inputs, new)
    embeddings, labels = embed(theirs, state)
    phase = prompt_phase(theirs, params, embeddings, labels, proxy_negatives(inputs, new, embeddings))
    rows = learn(phase, params.prompts.tokens, params.seed, state, progress)
    fused = merge_prompts(inputs, theirs, new)
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
    with atomic_folder(out) as folder:
        data = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        (folder / "prompts.safetensors").write_bytes(data)
        write_json(folder / "config.json", {"people": inputs.people, **model.config.to_json()})
        write_log(folder / "log.csv", rows, LOG_COLUMNS)
