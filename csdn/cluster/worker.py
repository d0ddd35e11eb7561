"""A worker of Ray Train: csdn.training's loop with its part of every batch, and checkpoints with the others.

This module imports Ray, so csdn.cluster.train imports it only after a session has begun: Ray reads some
settings of csdn.cluster.session when it is imported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
from torch import Tensor

from csdn.cluster.ray_loader import RayTrainLoader
from csdn.data.checkpoint_store import CheckpointStore, CheckpointTimer, Saved
from csdn.model.device import worker_device
from csdn.params import ScalingParams
from csdn.runtime.errors import UserError, without_cause
from csdn.training.distributed import rank_and_world_size
from csdn.training.embedding import EmbeddingWork, train_embedding

PREEMPTION_NOTE = "Ray will remove a node of the workers: they save now and continue elsewhere"


class WorkerFailureCallback(ray.train.UserCallback):
    """Runs in Ray Train's controller. Reports lost workers at once: a restart may take minutes."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        self.actor.note.remote(failure_note(worker_exceptions))


def failure_note(errors: Mapping[int, Exception]) -> str:
    """errors: by rank. As in "lost worker 1 (OutOfMemoryError): back to the last checkpoint"."""
    workers = ", ".join(f"{rank} ({type(errors[rank]).__name__})" for rank in sorted(errors))
    return f"lost worker {workers}: back to the last checkpoint"


def train_worker(config: dict[str, Any]) -> None:
    """Train in this worker. A UserError goes to the progress actor, and is not retried."""
    actor = config["progress"]
    if ray.get(actor.failure.remote()):
        return
    work, resume = ray.get(config["job"])
    try:
        _train(work, WorkerState(resume, actor), config["scaling"], actor)
    except UserError as error:
        ray.get(actor.fail.remote(without_cause(error)))
        raise


def _train(work: EmbeddingWork, state: WorkerState, scaling: ScalingParams, actor: Any) -> None:
    device = worker_device(scaling, work.training)
    rank, size = rank_and_world_size()

    def report(done: int, total: int, values: Mapping[str, float]) -> None:
        if rank == 0:
            actor.put.remote(done, total, values)

    loader = RayTrainLoader(work.source, work.settings.epochs, rank, size, device)
    model = work.model.to(device)
    timer = CheckpointTimer(max_s=scaling.checkpoint_seconds)
    text_table = work.text_table.to(device)
    rows = train_embedding(model, text_table, loader, work.settings, state, report, timer, work.training)
    state.save({"epoch": work.settings.epochs, "step": 0, "log": rows}, model.state_dict(prefix="model."))


class WorkerState:
    """The training state, kept in Ray Train's checkpoints; the interface is csdn.training.checkpoint.State.

    resume: the state that earlier runs saved, for the first start. All workers call each method together.
    """

    def __init__(self, resume: Saved | None, actor: Any) -> None:
        self.resume, self.actor = resume, actor
        self.preemption: Any = None

    def load(self) -> Saved | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return self.resume
        with checkpoint.as_directory() as folder:
            return CheckpointStore(Path(folder)).load() or self.resume

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Report a checkpoint to Ray Train; rank 0 writes it, the others wait until it is complete."""
        if rank_and_world_size()[0] != 0:
            ray.train.report({})
            return
        with tempfile.TemporaryDirectory() as folder:
            CheckpointStore(Path(folder)).save(position, tensors)
            ray.train.report({}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def leaving(self) -> bool:
        """Whether Ray has announced since the last call that it will remove a node of these workers."""
        preemption = ray.train.get_preemption_info()
        new = preemption is not None and preemption != self.preemption
        self.preemption = preemption
        if new and rank_and_world_size()[0] == 0:
            self.actor.note.remote(PREEMPTION_NOTE)
        return new
