"""Stage 2 from files to files: the feed's batches through the loop, a complete model out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from csdn.data.dataset import SampleTable
from csdn.data.feed import TrainFeed, TrainSource
from csdn.data.reading import shards_at
from csdn.data.rows import VIEWS
from csdn.device import configure_torch
from csdn.files import replace_folder, write_json
from csdn.model import CSDN, save
from csdn.model.fit import misfits, refuse, shapes
from csdn.model.tensor_files import check_weights, read_safetensors
from csdn.pace import Pace
from csdn.params import EmbeddingParams, Params
from csdn.state import open_state
from csdn.training.attempts import Attempts
from csdn.training.embedding_stage import EmbeddingSettings, train_embedding
from csdn.training.inputs import training_inputs
from csdn.training.log import write_log
from csdn.training.prompt_parts import Progress
from csdn.training.warm import WarmStart, warm_params


@dataclass(frozen=True)
class EmbeddingWork:
    """What stage 2's loop is called with: everything but who runs it. `model` is trained in place."""

    model: CSDN
    text_table: Tensor
    source: TrainSource
    settings: EmbeddingSettings


# train(params, work, attempts, report) runs the loop and returns its log's rows.
Train = Callable[[Params, EmbeddingWork, Attempts, Callable[..., None]], list[dict[str, Any]]]


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
        step_images = len(VIEWS) * params.embedding.people * params.embedding.images
        with progress("embedding", "steps", images=step_images) as report:
            attempts = Attempts(state, params.scaling.storage)
            rows = train(params, work, attempts, report)
        with replace_folder(out) as folder:
            save(model.eval(), folder, people=inputs.people, normalize=params.model.normalize)
            write_log(folder / "log.csv", rows)
        write_json(metrics, last_losses(rows))
        attempts.remove()


def train_here(
    params: Params, work: EmbeddingWork, attempts: Attempts, report: Callable[..., None]
) -> list[dict[str, Any]]:
    """The loop in this process, fed by processes of this machine."""
    device = configure_torch(params.scaling.threads, params.scaling.device, work.settings.precision)
    feed = TrainFeed(work.source, params.scaling.feed_processes)
    model, text_table = work.model.to(device), work.text_table.to(device)
    pace = Pace(most=params.scaling.checkpoint_seconds)
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
        people=params.embedding.people,
        images=params.embedding.images,
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
        images=params.images,
        precision=precision,
        learning_rate=params.learning_rate,
        head_learning_rate=params.head_learning_rate,
        weight_decay=params.weight_decay,
        schedule_update=params.schedule.update,
        schedule=params.schedule.model_dump(exclude={"update"}),
        weights=params.losses.model_dump(),
    )
