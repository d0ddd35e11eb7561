"""Ingest spread over a cluster: a task of Ray Data makes a shard, as csdn.data.packing's processes do.

The nodes need the drops and the place of the shards: folders that all of them share, or an object store.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from csdn.cluster.session import ray_session
from csdn.data.packing import PackedShard, Packer, ShardTask, pack
from csdn.errors import UserError
from csdn.params import ScalingParams


def packed_on_ray(scaling: ScalingParams) -> Packer:
    """A packer whose tasks run on the cluster, or on as many cores of this machine."""

    def packer(tasks: Sequence[ShardTask], processes: int) -> Iterator[PackedShard]:
        if not tasks:
            return
        with ray_session(scaling.address, processes):
            import ray

            numbers = ray.data.range(len(tasks), override_num_blocks=len(tasks))
            dataset = numbers.map_batches(_Pack(tasks), batch_size=1)
            dataset.context.execution_options.preserve_order = True
            dataset.context.enable_progress_bars = False
            blocks = dataset.iter_batches(batch_size=None, batch_format="numpy")
            for _, block in zip(tasks, blocks, strict=True):
                yield _packed(block)

    return packer


class _Pack:
    """What a task does: its shard; where that fails by the user's data, column `failure` says why."""

    def __init__(self, tasks: Sequence[ShardTask]) -> None:
        self.tasks, self.folder = tasks, Path.cwd()

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        task = self.tasks[int(block["id"][0])]
        try:
            packed = self._pack(task)
        except UserError as error:
            return {"failure": np.array([str(error)])}
        column = np.empty(1, object)
        column[0] = packed
        return {"packed": column}

    def _pack(self, task: ShardTask) -> PackedShard:
        if self.folder.is_dir():  # addresses may be relative to the project, where the nodes have it
            os.chdir(self.folder)
        if not task.store:
            return pack(replace(task, folder=self.folder / task.folder))
        with tempfile.TemporaryDirectory() as folder:
            return pack(replace(task, folder=Path(folder)))


def _packed(block: dict[str, np.ndarray]) -> PackedShard:
    if "failure" in block:
        raise UserError(str(block["failure"][0]))
    return block["packed"][0]
