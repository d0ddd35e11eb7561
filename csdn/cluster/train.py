"""Stage 2 on Ray: workers of Ray Train run the loop of csdn.training, with batches from Ray Data.

`train_on_ray` runs in the stage's process and waits; `train_worker` runs in each worker. Workers save
checkpoints through Ray Train, which restarts them from the last one when a worker or its node is lost.
"""

from __future__ import annotations

import secrets
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
from torch import Tensor

from csdn.cluster.progress import progress_actor
from csdn.cluster.ray_loader import RayTrainLoader
from csdn.cluster.session import ray_session
from csdn.data.checkpoint_store import CheckpointStore, CheckpointTimer, Saved
from csdn.model.device import configure_torch
from csdn.params import Params, ScalingParams
from csdn.runtime.errors import Diverged, UserError, without_cause
from csdn.training.checkpoint import restore_model
from csdn.training.distributed import rank_and_world_size
from csdn.training.embedding import EmbeddingWork, train_embedding

CHECKPOINTS_KEPT = 2  # the last one, and the one before it until the last one is complete
PREEMPTION_NOTE = "Ray will remove a node of the workers: they save now and continue elsewhere"

# ---- the waiting process


def train_on_ray(
    params: Params, work: EmbeddingWork, checkpoints: CheckpointStore, report: Callable[..., None]
) -> list[dict[str, Any]]:
    """Train in `scaling.workers` workers; losses and model are those of a single process.

    Only this process reads and writes the project's files. Workers on other nodes need this package, the
    shards, and `scaling.checkpoint_dir` for their checkpoints. Raises UserError.
    """
    scaling = params.scaling
    cores = scaling.workers * scaling.cpus_per_worker + max(1, scaling.loader_workers)
    with ray_session(scaling.address, cores):
        _warn_of_missing_cores(ray.cluster_resources().get("CPU", 0), scaling)
        job = ray.put((work, checkpoints.load()))
        checkpoints.remove_other_attempts()
        with progress_actor(report) as actor:
            _fit(scaling, {"job": job, "progress": actor, "scaling": scaling}, checkpoints)
            if failure := ray.get(actor.failure.remote()):
                raise failure
    position, tensors = checkpoints.load()
    restore_model(work.model, tensors)
    return position["log"]


def _warn_of_missing_cores(available: float, scaling: ScalingParams) -> None:
    """Ray would wait silently until the cluster has more cores, which an autoscaler may add."""
    needed = scaling.workers * scaling.cpus_per_worker
    if available <= needed:
        print(
            f"the Ray cluster has {available:.0f} cores; the workers need {needed} (scaling.workers x "
            "scaling.cpus_per_worker), and the loader at least one more: waiting until the cluster has grown",
            file=sys.stderr,
        )


def _fit(scaling: ScalingParams, config: dict[str, Any], checkpoints: CheckpointStore) -> None:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    filesystem, folder = checkpoints.storage
    filesystem.create_dir(folder, recursive=True)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=scaling.workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker} | ({"GPU": 1} if scaling.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=secrets.token_hex(8),
            storage_path=folder,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
            failure_config=FailureConfig(max_failures=scaling.max_failures),
            callbacks=[WorkerFailureCallback(config["progress"])],
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise UserError(
            f"training on Ray failed after {scaling.max_failures} restarts; the last checkpoint is kept: "
            f"run the same command again to continue from it\n{error}"
        ) from error


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


# ---- a worker


def train_worker(config: dict[str, Any]) -> None:
    """Train in this worker. A UserError goes to the progress actor, and is not retried."""
    actor = config["progress"]
    if ray.get(actor.failure.remote()):
        return
    work, resume = ray.get(config["job"])
    try:
        _train(work, WorkerState(resume, actor), config["scaling"], actor)
    except UserError as error:
        ray.get(actor.fail.remote(error if isinstance(error, Diverged) else without_cause(error)))
        raise


def _train(work: EmbeddingWork, state: WorkerState, scaling: ScalingParams, actor: Any) -> None:
    device = configure_torch(
        scaling.threads or scaling.cpus_per_worker,
        "cuda" if scaling.use_gpu else "cpu",
        work.precision,
    )
    rank, size = rank_and_world_size()

    def report(done: int, total: int, values: Mapping[str, float]) -> None:
        if rank == 0:
            actor.put.remote(done, total, values)

    loader = RayTrainLoader(work.source, work.settings.epochs, rank, size)
    model = work.model.to(device)
    timer = CheckpointTimer(max_s=scaling.checkpoint_seconds)
    text_table = work.text_table.to(device)
    rows = train_embedding(model, text_table, loader, work.settings, state, report, timer, work.precision)
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
