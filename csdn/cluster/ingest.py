"""Ingest on Ray: each Ray task packs one shard, as a process of csdn.ingest.pack does.

All nodes must reach the drops and the shards: in shared folders or in an object store.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from csdn.cluster.session import ray_session
from csdn.ingest.pack import PackedShard, Packer, ShardTask, pack
from csdn.params import ScalingParams
from csdn.runtime.errors import UserError, without_cause

# Tasks that wait or run for each core of the cluster: enough for an autoscaler to add nodes, and few enough
# that not the listing of a whole drop is in the object store.
TASKS_PER_CORE = 4
FEWEST_TASKS = 16  # while the cluster has no cores yet


def packed_on_ray(scaling: ScalingParams) -> Packer:
    """A packer whose tasks run on the Ray cluster, or else on the cores of this machine."""

    def packer(tasks: Sequence[ShardTask], processes: int) -> Generator[PackedShard]:
        if not tasks:
            return
        with ray_session(scaling.address, processes):
            yield from _in_order(tasks)

    return packer


def _in_order(tasks: Sequence[ShardTask]) -> Generator[PackedShard]:
    """The shards of the tasks, in order. Each Ray task is sent its own ShardTask and nothing else."""
    import ray

    pack_shard = ray.remote(_pack)
    folder = Path.cwd()
    waiting: deque[Any] = deque()
    for task in tasks:
        waiting.append(pack_shard.remote(folder, task))
        if len(waiting) >= max(FEWEST_TASKS, TASKS_PER_CORE * ray.cluster_resources().get("CPU", 0)):
            yield _result(waiting.popleft())
    yield from map(_result, waiting)


def _result(task: Any) -> PackedShard:
    import ray

    try:
        packed = ray.get(task)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise UserError(
            "a Ray task of ingest was killed again and again (out of memory?). The shards that were finished "
            f"are kept: lower ingest.max_pixels, and run the command again to go on\n{error}"
        ) from error
    if isinstance(packed, UserError):
        raise packed
    return packed


def _pack(folder: Path, task: ShardTask) -> PackedShard | UserError:
    """Runs in a Ray task; folder: the project's."""
    if folder.is_dir():  # addresses may be relative to the project folder, if the node has it
        os.chdir(folder)
    try:
        if not task.settings.store:
            return pack(replace(task, folder=folder / task.folder))
        with tempfile.TemporaryDirectory() as temporary:
            return pack(replace(task, folder=Path(temporary)))
    except UserError as error:  # returned, because Ray would add a traceback
        return without_cause(error)
