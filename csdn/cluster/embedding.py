"""Stage 2 on Ray: csdn.training.embedding_job, run by Ray Train and fed by Ray Data."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from csdn.cluster.train import run
from csdn.data.dataset import SampleTable
from csdn.params import Params
from csdn.training.embedding_job import local_feed, run_embedding
from csdn.training.embedding_stage import Feed
from csdn.training.prompt_job import Progress


def run_embedding_on_ray(
    params: Params, data: Path, prompts: Path, out: Path, metrics: Path, progress: Progress
) -> None:
    """`run_embedding` under Ray Train: the same losses and files as in the plain process.

    Of a cluster, a GPU is asked where scaling.device is "cuda", and Ray Data takes the cores that are left;
    on this machine it takes as many as scaling.feed_processes says.
    """
    run(
        partial(run_embedding, params, data, prompts, out, metrics, ray_feed, progress),
        address=params.scaling.address,
        data_cores=max(1, params.scaling.feed_processes),
        gpu=params.scaling.device == "cuda",
    )


def ray_feed(params: Params, table: SampleTable, data: Path) -> Feed:
    """The plan of the local feed, which starts no process until it is iterated over, executed by Ray Data."""
    from csdn.cluster.feed import RayFeed  # imports ray, which is configured when the session begins

    return RayFeed(local_feed(params, table, data))
