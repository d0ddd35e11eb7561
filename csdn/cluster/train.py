"""The same training loop, run by Ray Train.

On this machine's own Ray instance the loop runs in the calling process (Train's local mode: no process to
wait for), on a cluster in a worker there. The cluster shares this project's folder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from csdn.cluster.session import ray_session
from csdn.errors import UserError


def run(job: Callable[[], None], address: str | None, data_cores: int, gpu: bool) -> None:
    """Run `job` as the loop of a Ray Train worker; raises the UserError that it raised.

    job: importable function (or `functools.partial` of one) that writes its results to files; paths may be
    relative to the current folder. It sets torch's threads itself, as in the plain process, so that the
    losses are the same. data_cores: of this machine's own instance, for Ray Data.
    """
    scratch = Path(".state").absolute()  # in the shared folder, for what Train keeps of a run
    scratch.mkdir(exist_ok=True)
    with ray_session(address, data_cores) as own, tempfile.TemporaryDirectory(dir=scratch) as storage:
        from ray.train import RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchTrainer

        trainer = TorchTrainer(
            _loop,
            train_loop_config={"job": job, "folder": str(Path.cwd())},
            scaling_config=ScalingConfig(num_workers=0 if own else 1, use_gpu=gpu and not own),
            run_config=RunConfig(storage_path=storage),
        )
        try:
            failure = trainer.fit().return_value
        except TrainingFailedError as error:
            raise UserError(f"training on Ray failed; the last checkpoint is kept\n{error}") from error
    if failure:
        raise UserError(failure)


def _loop(config: dict) -> str | None:
    """What a Train worker runs; returns the message of a UserError, which Ray would wrap in a traceback."""
    os.chdir(config["folder"])
    try:
        config["job"]()
    except UserError as error:
        return str(error)
    return None
