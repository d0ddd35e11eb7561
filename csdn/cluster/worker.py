"""A worker of Ray Train: csdn.training's loop with its part of every batch, and checkpoints with the others.

This module imports Ray, so csdn.cluster.train imports it only after a session has begun: Ray reads some
settings of csdn.cluster.session when it is imported.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import ray.train
from ray.train import Checkpoint, CheckpointUploadMode
from torch import Tensor

from csdn.cluster.ray_loader import RayTrainLoader
from csdn.data.checkpoint_store import CheckpointStore, CheckpointTimer, Saved
from csdn.model.device import worker_device
from csdn.params import ScalingParams
from csdn.runtime.errors import UserError, without_cause
from csdn.training.checkpoint import WAIT, copied
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
    with user_errors_to(actor), WorkerState(resume, actor, *config["storage"]) as state:
        _train(work, state, config["scaling"], actor)


@contextmanager
def user_errors_to(actor: Any) -> Iterator[None]:
    try:
        yield
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
    timer = CheckpointTimer(WAIT, max_s=scaling.checkpoint_seconds)
    text_table = work.text_table.to(device)
    rows = train_embedding(model, text_table, loader, work.settings, state, report, timer, work.training)
    state.save({"epoch": work.settings.epochs, "step": 0, "log": rows}, model.state_dict(prefix="model."))


class WorkerState:
    """The training state, kept in Ray Train's checkpoints; the interface is csdn.training.checkpoint.State.

    A thread of Ray Train writes and uploads them; rank 0 alone has something to write. A context, whose end
    waits until the last checkpoint is uploaded.

    resume: the state that earlier runs saved, for the first start. filesystem, folder: of this run in the
    storage. All workers call `save`, `load` and `leaving` together.
    """

    def __init__(
        self, resume: Saved | None, actor: Any, filesystem: pyarrow.fs.FileSystem, folder: str
    ) -> None:
        self.resume, self.actor = resume, actor
        self.filesystem, self.folder = filesystem, folder
        self.preemption: Any = None
        self._uploaded = threading.Event()
        self._uploaded.set()

    def __enter__(self) -> WorkerState:
        return self

    def __exit__(self, *_: object) -> None:
        self._uploaded.wait()

    def load(self) -> Saved | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return self.resume
        with checkpoint.as_directory() as folder:
            return CheckpointStore(Path(folder)).load() or self.resume

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Report a checkpoint to Ray Train, with a copy of rank 0's tensors."""
        if rank_and_world_size()[0] != 0:
            ray.train.report({}, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            return
        self._uploaded.wait()
        uploaded, copies = threading.Event(), copied(tensors or {})

        def upload(local: Checkpoint, name: str) -> Checkpoint:
            try:
                with user_errors_to(self.actor):
                    CheckpointStore(Path(local.path)).save(position, copies)
                    return self._upload(local, name)
            finally:
                uploaded.set()

        ray.train.report(
            {},
            checkpoint=Checkpoint.from_directory(tempfile.mkdtemp()),  # Ray Train removes it after the upload
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
        )
        self._uploaded = uploaded
        if self.preemption is not None:
            self._uploaded.wait()

    def _upload(self, local: Checkpoint, name: str) -> Checkpoint:
        place = f"{self.folder}/{name}"
        self.filesystem.create_dir(place)
        pyarrow.fs.copy_files(local.path, place, destination_filesystem=self.filesystem)
        return Checkpoint(place, self.filesystem)

    def write_pending(self) -> bool:
        """Whether rank 0's last checkpoint is not uploaded yet. Ray Train ends the workers if it fails."""
        return not self._uploaded.is_set()

    def leaving(self) -> bool:
        """Whether Ray has announced since the last call that it will remove a node of these workers."""
        preemption = ray.train.get_preemption_info()
        new = preemption is not None and preemption != self.preemption
        self.preemption = preemption
        if new and rank_and_world_size()[0] == 0:
            self.actor.note.remote(PREEMPTION_NOTE)
        return new
