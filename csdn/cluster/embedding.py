"""Stage 2 on Ray: csdn.training's loop in workers of Ray Train, fed by Ray Data."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from csdn.cluster.board import watched_board
from csdn.cluster.session import ray_session
from csdn.errors import UserError
from csdn.params import Params, ScalingParams
from csdn.training.attempts import Attempts
from csdn.training.checkpoint import restore_model
from csdn.training.embedding_job import EmbeddingWork

# Checkpoints that an attempt keeps: the last one, and the one before until that is whole.
KEPT = 2


def train_on_ray(
    params: Params, work: EmbeddingWork, attempts: Attempts, report: Callable[..., None]
) -> list[dict[str, Any]]:
    """The loop in `scaling.workers` workers; the losses and the model are those of the plain process.

    Only this process reads and writes the project's files. The workers, which may be elsewhere, need this
    package, the shards, and `scaling.storage` for their checkpoints. Raises UserError.
    """
    scaling = params.scaling
    cores = scaling.workers * scaling.cpus_per_worker + max(1, scaling.feed_processes)
    with ray_session(scaling.address, cores):
        import ray

        _note_missing_cores(ray.cluster_resources().get("CPU", 0), scaling)
        job = ray.put((work, attempts.load()))
        attempts.forget_others()
        with watched_board(report) as board:
            _fit(scaling, {"job": job, "board": board, "scaling": scaling}, attempts)
    position, tensors = attempts.load()
    restore_model(work.model, tensors)
    return position["log"]


def _note_missing_cores(there: float, scaling: ScalingParams) -> None:
    """Say what Ray would wait for in silence; a cluster that grows by itself will have them."""
    asked = scaling.workers * scaling.cpus_per_worker
    if there <= asked:
        print(
            f"the Ray cluster has {there:.0f} cores; {asked} are for the workers (scaling.workers x "
            "scaling.cpus_per_worker), and at least one is for making batches: waiting until it has grown",
            file=sys.stderr,
        )


def _fit(scaling: ScalingParams, config: dict[str, Any], attempts: Attempts) -> None:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from csdn.cluster.loop import train_worker
    from csdn.cluster.lost_workers import LostWorkers

    attempts.filesystem.create_dir(attempts.folder, recursive=True)
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
            storage_path=attempts.folder,
            storage_filesystem=attempts.filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT),
            failure_config=FailureConfig(max_failures=scaling.max_failures),
            callbacks=[LostWorkers(config["board"])],
        ),
    )
    try:
        # There Ray prints the last twenty lines that a lost node had logged.
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            trainer.fit()
    except TrainingFailedError as error:
        raise UserError(
            f"training on Ray failed after {scaling.max_failures} restarts; the last checkpoint is kept: "
            f"run the same command again to go on from it\n{error}"
        ) from error
    if failure := ray.get(config["board"].failure.remote()):
        raise failure
