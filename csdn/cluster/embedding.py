"""Stage 2 on Ray: csdn.training.embedding_job, run by Ray Train and fed by Ray Data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from csdn.cluster.feed import RayFeed
from csdn.cluster.train import run
from csdn.console import progress
from csdn.data.dataset import SampleTable
from csdn.params import Params, parse_params
from csdn.training.embedding_job import local_feed, run_embedding


def run_embedding_on_ray(params: Params, data: Path, prompts: Path, out: Path, metrics: Path) -> None:
    """`run_embedding` in a Ray Train worker; paths are relative to the project's folder, which Ray shares."""
    cores = len(os.sched_getaffinity(0))
    run(
        _train,
        {"params": params.model_dump(), "data": data, "prompts": prompts, "out": out, "metrics": metrics},
        address=params.scaling.address,
        data_cores=params.scaling.feed_processes or cores,
        threads=params.scaling.threads or cores,
        gpu=params.scaling.device == "cuda",
    )


def _train(description: dict[str, Any]) -> None:
    params = parse_params(description.pop("params"))
    run_embedding(params, **description, make_feed=_ray_feed, progress=progress)


def _ray_feed(params: Params, table: SampleTable, data: Path) -> RayFeed:
    # Only the plan and the rows of the local feed are used: it starts no process until it is iterated over.
    return RayFeed(local_feed(params, table, data))
