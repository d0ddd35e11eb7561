"""Stage 2 on Ray: workers of Ray Train run the loop of csdn.training, with batches from Ray Data.

`train_on_ray` runs in the stage's process and waits; csdn.cluster.worker runs in each worker. Workers save
checkpoints through Ray Train, which restarts them from the last one when a worker or its node is lost.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from typing import Any

from csdn.cluster.progress import progress_actor
from csdn.cluster.session import ray_session
from csdn.data.checkpoint_store import CheckpointStore
from csdn.params import Params, ScalingParams
from csdn.runtime.errors import UserError
from csdn.training.checkpoint import restore_model
from csdn.training.embedding import EmbeddingWork

CHECKPOINTS_KEPT = 2  # the last one, and the one before it until the last one is complete


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
        import ray

        _warn_of_missing_cores(ray.cluster_resources().get("CPU", 0), scaling)
        job = ray.put((work, checkpoints.load()))
        checkpoints.remove_other_attempts()
        with progress_actor(report) as actor:
            _fit(scaling, {"job": job, "progress": actor, "scaling": scaling}, checkpoints)
            if failure := ray.get(actor.failure.remote()):
                raise failure
    position, tensors = checkpoints.load() or ({"epoch": 0}, {})
    if position["epoch"] < work.settings.epochs:  # an older checkpoint is kept beside the last one
        raise UserError(
            "the workers' last checkpoint is missing or damaged; run the same command again to continue from "
            "the one before"
        )
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
    from pyarrow.fs import FSSpecHandler, PyFileSystem
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from csdn.cluster.worker import WorkerFailureCallback, train_worker

    filesystem, folder = checkpoints.prepared_storage()
    storage, name = PyFileSystem(FSSpecHandler(filesystem)), secrets.token_hex(8)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config | {"storage": (storage, f"{folder}/{name}")},
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=scaling.workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker} | ({"GPU": 1} if scaling.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=folder,
            storage_filesystem=storage,
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
            failure_config=FailureConfig(max_failures=scaling.max_failures),
            callbacks=[WorkerFailureCallback(config["progress"])],  # type: ignore[list-item]  # Tune's type
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise UserError(
            f"training on Ray failed after {scaling.max_failures} restarts; the last checkpoint is kept: "
            f"run the same command again to continue from it\n{error}"
        ) from error
