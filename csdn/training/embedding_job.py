"""Stage 2 from files to files: the feed's batches through the loop, a complete model out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from csdn.data.dataset import SampleTable
from csdn.data.feed import TrainFeed
from csdn.data.rows import VIEWS
from csdn.device import configure_torch
from csdn.files import replace_folder, write_json
from csdn.model import CSDN, save
from csdn.model.tensor_files import read_safetensors
from csdn.params import EmbeddingParams, Params
from csdn.state import open_state
from csdn.training.embedding_stage import EmbeddingSettings, Feed, train_embedding
from csdn.training.inputs import training_inputs
from csdn.training.log import write_log
from csdn.training.prompt_job import Progress


def run_embedding(
    params: Params,
    data: Path,
    prompts: Path,
    out: Path,
    metrics: Path,
    make_feed: Callable[[Params, SampleTable, Path], Feed],
    progress: Progress,
) -> None:
    """Run stage 2; writes `out` (model.safetensors, config.json, log.csv), enough for `csdn.load(out)`.

    `metrics` gets the mean losses over the last epoch.
    `make_feed(params, table, data)` gives what executes the plan: a DataLoader or Ray Data.
    """
    device = configure_torch(params.scaling.threads, params.scaling.device)
    weights = prompts / "prompts.safetensors"
    inputs = training_inputs(params, data, "embedding", weights)
    model = inputs.model
    text_table = load_prompts(model, weights).to(device)
    model.to(device).channels_last()
    with open_state("embedding", inputs.key) as state:
        step_images = len(VIEWS) * params.embedding.people * params.embedding.images
        with progress("embedding", "steps", images=step_images) as report:
            feed = make_feed(params, inputs.table, data)
            rows = train_embedding(
                model, text_table, feed, embedding_settings(params.embedding), state, report
            )
        with replace_folder(out) as folder:
            save(model.eval(), folder, people=inputs.people, normalize=params.model.normalize)
            write_log(folder / "log.csv", rows)
        write_json(metrics, last_losses(rows))


def last_losses(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the rows of the log's last epoch, to 6 digits."""
    last = [row for row in rows if row["epoch"] == rows[-1]["epoch"]]
    names = [name for name in rows[-1] if name not in ("epoch", "step", "learning_rate")]
    return {name: round(statistics.fmean(row[name] for row in last), 6) for name in names}


def local_feed(params: Params, table: SampleTable, data: Path) -> Feed:
    """The plan executed by this machine's processes."""
    return TrainFeed(
        table,
        data / "shards",
        people=params.embedding.people,
        images=params.embedding.images,
        image_size=params.model.image_size,
        normalize=params.model.normalize,
        padding=params.embedding.padding,
        seed=params.seed,
        processes=params.scaling.feed_processes,
    )


def load_prompts(model: CSDN, weights: Path) -> Tensor:
    """Put stage 1's tokens and SII into `model`; returns the fused text table [identities, d]."""
    tensors = read_safetensors(weights)
    for name in ("prompts", "integration"):
        part = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
        getattr(model, name).load_state_dict(part)
    return tensors["fused_text"]


def embedding_settings(params: EmbeddingParams) -> EmbeddingSettings:
    """The section `embedding` of params.yaml as the loop takes it."""
    return EmbeddingSettings(
        epochs=params.epochs,
        images=params.images,
        learning_rate=params.learning_rate,
        head_learning_rate=params.head_learning_rate,
        weight_decay=params.weight_decay,
        schedule_update=params.schedule.update,
        schedule=params.schedule.model_dump(exclude={"update"}),
        weights=params.losses.model_dump(),
    )
