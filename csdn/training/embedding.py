"""Stage 2 trains the image encoder to tell identities apart, with HSE tying it to the fused texts of stage 1.

1. `train_embedding` is the loop: a batch, its losses, a step of Adam, a row of the log, a checkpoint. It
   knows tensors, not where they come from. It runs in one process, or in each of several workers: these
   have a part of every batch each and take the step of the whole batch together.
2. The optimiser and its learning rates.
3. `run_embedding` is the stage from files to files.

docs/method.md has the whole method; csdn/losses.py the objective.
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
from csdn.data.checkpoint_store import CheckpointStore, CheckpointTimer, open_state
from csdn.data.loader import TrainBatch, TrainLoader, TrainSource
from csdn.data.shards import shards_at
from csdn.losses import embedding_losses
from csdn.model import CSDN, save
from csdn.model.device import compiled, configured_device
from csdn.model.weights import check_weights, misfits, read_safetensors, refuse, shapes
from csdn.params import EmbeddingParams, Params, TrainingParams
from csdn.runtime.files import atomic_folder, write_json
from csdn.training.checkpoint import WAIT, LocalState, State, restore_training, save_training
from csdn.training.distributed import (
    all_gather_with_grad,
    all_reduce_any,
    average_gradients,
    rank_and_world_size,
    wrap_for_ddp,
)
from csdn.training.log import DataWaitTimer, LossLog, check_tensors, write_log
from csdn.training.prompts import Progress
from csdn.training.schedules import lr_multiplier
from csdn.training.warm_start import WarmStart, training_inputs, warm_params

# The arithmetic of a plain CPU.
PLAIN = TrainingParams(precision="float32", deterministic=True, compile=False)
ADVICE = (
    "lower learning_rate and head_learning_rate in params.yaml (section embedding; warm_start, where "
    "training starts from a champion), or set training.precision to float32 where it is another"
)


# 1. The loop.


class Loader(Protocol):
    """Executes the plan; `epoch(e, start)` yields the batches of epoch e from number `start` on."""

    steps_per_epoch: int

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TrainBatch]: ...


def train_embedding(
    model: CSDN,
    text_table: Tensor,
    loader: Loader,
    settings: EmbeddingParams,
    state: State,
    report: Callable[..., None],
    timer: CheckpointTimer | None = None,
    training: TrainingParams = PLAIN,
) -> list[dict[str, Any]]:
    """Train `model` in place, from the last checkpoint of `state` if there is one; returns the log's rows.

    text_table: [identities, d], the fused text features, constants of this stage. Each of several workers
    (torch.distributed) calls this with its part of every batch; all save together. Raises Diverged, in all
    workers and before anything is saved, where losses or weights are not finite.
    """
    freeze_text(model)
    optimizer = build_optimizer(model, settings)
    first_epoch, first_step, rows = restore_training(state, model, optimizer)
    log = LossLog(loader.steps_per_epoch, ADVICE, rows)
    trained = wrap_for_ddp(model.train())
    trained = compiled(trained) if training.compile else trained
    timer, data_wait = timer or CheckpointTimer(), DataWaitTimer()
    total = settings.epochs * loader.steps_per_epoch
    for epoch in range(first_epoch, settings.epochs):
        for batch in data_wait.timed(loader.epoch(epoch, first_step)):
            rate = set_learning_rates(optimizer, settings, epoch, batch.step / loader.steps_per_epoch)
            losses = training_step(trained, optimizer, batch, text_table, settings, training.precision)
            done = batch.step + 1
            last = done == loader.steps_per_epoch
            step = epoch * loader.steps_per_epoch + done
            if log.add(losses, rate, due=last, epoch=epoch, step=step):
                waiting = data_wait.data_wait_fraction()
                report(step, total, {"loss": log.rows[-1]["total"], "waiting": waiting})
                if checkpoint_due(timer, state):
                    with timer.saving():
                        position = (epoch + 1, 0) if last else (epoch, done)
                        save_training(state, model, optimizer, position, log.rows, ADVICE)
        first_step = 0
    check_tensors(model.state_dict(prefix="model."), log.rows[-1], ADVICE)
    return log.rows


def freeze_text(model: CSDN) -> None:
    """Only the image encoder and its heads train; DDP would wait for gradients of the text otherwise."""
    model.requires_grad_(False)
    for parameter in model.image_parameters():
        parameter.requires_grad_(True)


def checkpoint_due(timer: CheckpointTimer, state: State) -> bool:
    """Whether to save now; the same answer in all workers: the first worker decides for all.

    Not while a checkpoint is being written, unless this machine is about to be taken away.
    """
    leaving = state.leaving()
    first = rank_and_world_size()[0] == 0
    return all_reduce_any(leaving or (first and not state.write_pending() and timer.due()))


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: TrainBatch,
    text_table: Tensor,
    settings: EmbeddingParams,
    precision: str = "float32",
) -> dict[str, Tensor]:
    """One step of Adam on one batch; returns its losses.

    model: a CSDN, or `wrap_for_ddp` or `compiled` of one. precision: as in `embedding_losses`. On a GPU
    nothing here waits for it, so that the CPU is always some kernels ahead.
    """
    losses = embedding_losses(
        model,
        batch.visible_view1,
        batch.visible_view2,
        batch.infrared,
        batch.labels,
        text_table,
        instances=settings.images_per_identity,
        weights=settings.losses.model_dump(),
        precision=precision,
        gather=all_gather_with_grad,
        rank=rank_and_world_size()[0],
    )
    optimizer.zero_grad(set_to_none=True)
    losses["total"].backward()
    average_gradients(model)
    optimizer.step()
    return losses


# 2. The optimiser and its learning rates.


def build_optimizer(model: CSDN, settings: EmbeddingParams) -> torch.optim.Adam:
    """Adam with coupled weight decay; GeM's power, BNNecks and classifiers have their own learning rate."""
    heads = list(model.head_parameters())
    of_heads = {id(parameter) for parameter in heads}
    backbone = [parameter for parameter in model.image_parameters() if id(parameter) not in of_heads]
    groups = [
        {"params": backbone, "lr": settings.learning_rate, "base": settings.learning_rate},
        {"params": heads, "lr": settings.head_learning_rate, "base": settings.head_learning_rate},
    ]
    return torch.optim.Adam(groups, weight_decay=settings.weight_decay, fused=True)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, settings: EmbeddingParams, epoch: int, fraction: float
) -> float:
    """Set each group's rate for this step (`fraction` of the epoch is done); returns the backbone's."""
    at = epoch + fraction if settings.schedule.lr_update == "step" else epoch
    schedule = settings.schedule.model_dump(exclude={"lr_update"})
    multiplier = lr_multiplier(at, epochs=settings.epochs, **schedule)
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * multiplier
    return optimizer.param_groups[0]["lr"]


# 3. The stage, from files to files.


@dataclass(frozen=True)
class EmbeddingWork:
    """The arguments of the loop without the process that runs it; `model` is trained in place."""

    model: CSDN
    text_table: Tensor
    source: TrainSource
    settings: EmbeddingParams
    training: TrainingParams = PLAIN


# train(params, work, checkpoints, report) runs the loop and returns its log's rows.
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

    metrics: the file for the mean losses of the last epoch. train: `train_local`, or csdn.cluster's. warm:
    the champion to start from, if any; epochs and rates are then those of `warm_start`, the optimiser's state
    is new.
    """
    params = warm_params(params) if warm else params
    weights = prompts / "prompts.safetensors"
    inputs = training_inputs(params, data, "embedding", weights, warm=warm)
    model = inputs.model
    text_table = load_prompts(model, weights)
    source = TrainSource(params, inputs.table, shards_at(params, data))
    work = EmbeddingWork(model.channels_last(), text_table, source, params.embedding, params.training)
    with open_state("embedding", inputs.key, checkpoint_dir=params.scaling.checkpoint_dir) as checkpoints:
        step_images = (
            len(VIEWS) * params.embedding.identities_per_batch * params.embedding.images_per_identity
        )
        with progress("embedding", "steps", images=step_images) as report:
            rows = train(params, work, checkpoints, report)
        with atomic_folder(out) as folder:
            save(model.eval(), folder, people=inputs.people, normalize=params.model.normalize)
            write_log(folder / "log.csv", rows)
        write_json(metrics, last_losses(rows))


def train_local(
    params: Params, work: EmbeddingWork, checkpoints: CheckpointStore, report: Callable[..., None]
) -> list[dict[str, Any]]:
    """The loop in this process; processes of this machine make its batches."""
    device = configured_device(params)
    loader = TrainLoader(work.source, params.scaling.loader_workers, device)
    model, text_table = work.model.to(device), work.text_table.to(device)
    timer = CheckpointTimer(WAIT, max_s=params.scaling.checkpoint_seconds)
    with LocalState(checkpoints) as state:
        return train_embedding(model, text_table, loader, work.settings, state, report, timer, work.training)


def load_prompts(model: CSDN, weights: Path) -> Tensor:
    """Load stage 1's tokens and SII into `model`; returns the fused text table [identities, d]."""
    tensors = read_safetensors(weights)
    parts = ("prompts.", "integration.")
    needed = {name: shape for name, shape in shapes(model.state_dict()).items() if name.startswith(parts)}
    needed["fused_text"] = [model.config.identities, model.config.embed_dim]
    refuse(str(weights), misfits(needed, shapes(tensors)), "not of this network; `dvc repro` makes it")
    check_weights(str(weights), tensors)
    text_table = tensors.pop("fused_text")
    model.load_state_dict(model.state_dict() | tensors)
    return text_table


def last_losses(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the rows of the log's last epoch, to 6 digits."""
    last = [row for row in rows if row["epoch"] == rows[-1]["epoch"]]
    names = [name for name in rows[-1] if name not in ("epoch", "step", "learning_rate")]
    return {name: round(statistics.fmean(row[name] for row in last), 6) for name in names}
