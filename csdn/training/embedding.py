"""Stage 2: the image encoder learns to tell people, tied to the fused text of each (docs/method.md).

`train_embedding` is the loop; it knows tensors and batches, not where they come from. The same loop runs in
the plain process and in each of several workers, which then take one step together.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from csdn.data.batch import VIEWS
from csdn.data.catalog import SampleTable
from csdn.data.loader import TrainLoader, TrainSource
from csdn.data.shards import shards_at
from csdn.data.state import CheckpointTimer, open_state
from csdn.losses import embedding_losses
from csdn.model import CSDN, save
from csdn.model.device import configure_torch
from csdn.model.weights import check_weights, misfits, read_safetensors, refuse, shapes
from csdn.params import EmbeddingParams, Params
from csdn.runtime.files import atomic_folder, write_json
from csdn.training.checkpoint import (
    CheckpointStore,
    model_tensors,
    optimizer_tensors,
    restore_model,
    restore_optimizer,
)
from csdn.training.distributed import (
    all_gather_with_grad,
    all_reduce_any,
    average_gradients,
    rank_and_world_size,
    wrap_for_ddp,
)
from csdn.training.inputs import training_inputs
from csdn.training.log import LossLog, Waiting, check_tensors, write_log
from csdn.training.prompts import Progress
from csdn.training.schedules import Adam, lr_multiplier
from csdn.training.warm_start import WarmStart, warm_params

ADVICE = (
    "lower learning_rate and head_learning_rate in params.yaml (section embedding; warm, where training goes "
    "on from a champion), or set training.precision to float32 where it is another"
)


class BatchTensors(Protocol):
    """A row of the plan as tensors: images float [P*K, 3, H, W], labels int64 [P*K], grouped by person."""

    visible_view1: Tensor
    visible_view2: Tensor
    infrared: Tensor
    labels: Tensor
    step: int


class Loader(Protocol):
    """Executes the plan; `epoch(e, start)` yields the batches of epoch e from row `start` on."""

    steps_per_epoch: int

    def epoch(self, epoch: int, start: int = 0) -> Iterator[BatchTensors]: ...


class State(Protocol):
    """Where the loop saves, so that another run of it goes on there; see csdn.data.state.StageState.

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
    feed: Loader,
    settings: EmbeddingSettings,
    state: State,
    report: Callable[..., None],
    pace: CheckpointTimer | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place, from the last checkpoint of `state` if there is one; returns the log's rows.

    text_table: [identities, d] fused text features, constants of this stage.
    Each of several workers (torch.distributed) calls it with its part of every batch; all save together.
    Raises Diverged where losses or weights are not finite: before they are saved, in all workers.
    """
    freeze_text(model)
    optimizer = build_optimizer(model, settings)
    first, start, rows = restore_state(model, optimizer, state)
    log = LossLog(feed.steps_per_epoch, ADVICE, rows)
    trained = wrap_for_ddp(model.train())
    pace, waiting = pace or CheckpointTimer(), Waiting()
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
                        save_state(model, optimizer, state, epoch + last, 0 if last else done, log.rows)
        start = 0
    check_tensors(model_tensors(model), log.rows[-1], ADVICE)
    return log.rows


def freeze_text(model: CSDN) -> None:
    """The text is constant here; workers would wait for its gradients."""
    model.requires_grad_(False)
    for parameter in model.image_parameters():
        parameter.requires_grad_(True)


def due_to_save(pace: CheckpointTimer, state: State) -> bool:
    """Whether to save now; the same answer in all workers, whose clocks differ: the first one's counts."""
    leaving = state.leaving()
    return all_reduce_any(leaving or (rank_and_world_size()[0] == 0 and pace.due()))


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: BatchTensors,
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
        gather=all_gather_with_grad,
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
    scale = lr_multiplier(at, epochs=settings.epochs, **settings.schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * scale
    return optimizer.param_groups[0]["lr"]


def save_state(
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


def restore_state(
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


# Stage 2 from files to files: the feed's batches through the loop, a complete model out.


@dataclass(frozen=True)
class EmbeddingWork:
    """What stage 2's loop is called with: everything but who runs it. `model` is trained in place."""

    model: CSDN
    text_table: Tensor
    source: TrainSource
    settings: EmbeddingSettings


# train(params, work, attempts, report) runs the loop and returns its log's rows.
Train = Callable[[Params, EmbeddingWork, CheckpointStore, Callable[..., None]], list[dict[str, Any]]]


def run_embedding(
    params: Params,
    data: Path,
    prompts: Path,
    out: Path,
    metrics: Path,
    train: Train,
    progress: Progress,
    warm: WarmStart | None = None,
) -> None:
    """Run stage 2; writes `out` (model.safetensors, config.json, log.csv), enough for `csdn.load(out)`.

    `metrics` gets the mean losses over the last epoch. `train`: `train_here`, or that of csdn.cluster.
    warm: the champion to go on from, if any; the optimiser is fresh, epochs and rates are those of `warm`.
    """
    params = warm_params(params) if warm else params
    weights = prompts / "prompts.safetensors"
    inputs = training_inputs(params, data, "embedding", weights, warm=warm)
    model = inputs.model
    text_table = load_prompts(model, weights)
    settings = embedding_settings(params.embedding, params.training.precision)
    source = train_source(params, inputs.table, data)
    work = EmbeddingWork(model.channels_last(), text_table, source, settings)
    with open_state("embedding", inputs.key) as state:
        step_images = (
            len(VIEWS) * params.embedding.identities_per_batch * params.embedding.images_per_identity
        )
        with progress("embedding", "steps", images=step_images) as report:
            attempts = CheckpointStore(state, params.scaling.checkpoint_dir)
            rows = train(params, work, attempts, report)
        with atomic_folder(out) as folder:
            save(model.eval(), folder, people=inputs.people, normalize=params.model.normalize)
            write_log(folder / "log.csv", rows)
        write_json(metrics, last_losses(rows))
        attempts.remove()


def train_local(
    params: Params, work: EmbeddingWork, attempts: CheckpointStore, report: Callable[..., None]
) -> list[dict[str, Any]]:
    """The loop in this process, fed by processes of this machine."""
    device = configure_torch(params.scaling.threads, params.scaling.device, work.settings.precision)
    feed = TrainLoader(work.source, params.scaling.loader_workers)
    model, text_table = work.model.to(device), work.text_table.to(device)
    pace = CheckpointTimer(most=params.scaling.checkpoint_seconds)
    return train_embedding(model, text_table, feed, work.settings, attempts, report, pace)


def last_losses(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the rows of the log's last epoch, to 6 digits."""
    last = [row for row in rows if row["epoch"] == rows[-1]["epoch"]]
    names = [name for name in rows[-1] if name not in ("epoch", "step", "learning_rate")]
    return {name: round(statistics.fmean(row[name] for row in last), 6) for name in names}


def train_source(params: Params, table: SampleTable, data: Path) -> TrainSource:
    """The batches that params.yaml asks for, wherever they will be made."""
    return TrainSource(
        table,
        shards_at(params, data),
        people=params.embedding.identities_per_batch,
        images=params.embedding.images_per_identity,
        image_size=params.model.image_size,
        normalize=params.model.normalize,
        padding=params.embedding.padding,
        seed=params.seed,
    )


def load_prompts(model: CSDN, weights: Path) -> Tensor:
    """Put stage 1's tokens and SII into `model`; returns the fused text table [identities, d]."""
    tensors = read_safetensors(weights)
    parts = ("prompts.", "integration.")
    needed = {name: shape for name, shape in shapes(model.state_dict()).items() if name.startswith(parts)}
    needed["fused_text"] = [model.config.identities, model.config.embed_dim]
    refuse(str(weights), misfits(needed, shapes(tensors)), "not of this network; `dvc repro` makes it")
    check_weights(str(weights), tensors)
    text_table = tensors.pop("fused_text")
    model.load_state_dict(model.state_dict() | tensors)
    return text_table


def embedding_settings(params: EmbeddingParams, precision: str) -> EmbeddingSettings:
    """The section `embedding` of params.yaml as the loop takes it."""
    return EmbeddingSettings(
        epochs=params.epochs,
        images=params.images_per_identity,
        precision=precision,
        learning_rate=params.learning_rate,
        head_learning_rate=params.head_learning_rate,
        weight_decay=params.weight_decay,
        schedule_update=params.schedule.lr_update,
        schedule=params.schedule.model_dump(exclude={"lr_update"}),
        weights=params.losses.model_dump(),
    )
