"""What each worker of Ray Train does: its part of every batch, and checkpoints together with the others."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
from torch import Tensor

from csdn.cluster.feed import RayFeed
from csdn.device import configure_torch
from csdn.errors import UserError
from csdn.pace import Pace
from csdn.params import ScalingParams
from csdn.state import as_files, saved_files
from csdn.training.attempts import Saved
from csdn.training.checkpoint import model_tensors
from csdn.training.collectives import world
from csdn.training.embedding_job import EmbeddingWork
from csdn.training.embedding_stage import train_embedding

ANNOUNCED = "a node of the workers is announced to go: they save, and go on elsewhere when it has gone"


def train_worker(config: dict[str, Any]) -> None:
    """Train in this worker; a mistake of the user is noted on the board, and not tried again."""
    board = config["board"]
    if ray.get(board.failure.remote()):
        return
    work, resume = ray.get(config["job"])
    try:
        _train(work, WorkerState(resume, board), config["scaling"], board)
    except UserError as error:
        ray.get(board.fail.remote(error))
        raise


def _train(work: EmbeddingWork, state: WorkerState, scaling: ScalingParams, board: Any) -> None:
    device = configure_torch(
        scaling.threads or scaling.cpus_per_worker,
        "cuda" if scaling.use_gpu else "cpu",
        work.settings.precision,
    )
    rank, size = world()

    def report(done: int, total: int, values: Mapping[str, float]) -> None:
        if rank == 0:
            board.put.remote(done, total, values)

    feed = RayFeed(work.source, work.settings.epochs, rank, size)
    model = work.model.to(device)
    pace = Pace(most=scaling.checkpoint_seconds)
    rows = train_embedding(model, work.text_table.to(device), feed, work.settings, state, report, pace)
    state.save({"epoch": work.settings.epochs, "step": 0, "log": rows}, model_tensors(model))


class WorkerState:
    """A state that is kept by Ray Train: in its storage, known to it for a restart of the workers.

    resume: what earlier runs have saved, for a first start. board: where a node that will go is noted. The
    methods are those of csdn.state.StageState; all workers call each of them together.
    """

    def __init__(self, resume: Saved | None, board: Any) -> None:
        self.resume, self.board = resume, board
        self.noticed: Any = None

    def load(self) -> Saved | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return self.resume
        with checkpoint.as_directory() as folder:
            return saved_files(lambda name: (Path(folder) / name).read_bytes()) or self.resume

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Hand the state to Ray Train; the first worker writes it, the others wait until it stands."""
        if world()[0] != 0:
            ray.train.report({})
            return
        with tempfile.TemporaryDirectory() as folder:
            for name, data in as_files(position, tensors).items():
                (Path(folder) / name).write_bytes(data)
            ray.train.report({}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def leaving(self) -> bool:
        """Whether Ray has just announced that a node of these workers goes: once for each announcement."""
        found = ray.train.get_preemption_info()
        new = found is not None and found != self.noticed
        self.noticed = found
        if new and world()[0] == 0:
            self.board.note.remote(ANNOUNCED)
        return new
