"""Ingest on Ray: each task of Ray Data packs one shard, as a process of csdn.ingest.pack does.

All nodes must reach the drops and the shards: in shared folders or in an object store.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from csdn.cluster.session import ray_session
from csdn.ingest.pack import PackedShard, Packer, ShardTask, pack
from csdn.params import ScalingParams


def packed_on_ray(scaling: ScalingParams) -> Packer:
    """A packer whose tasks run on the Ray cluster, or else on the cores of this machine."""

    def packer(tasks: Sequence[ShardTask], processes: int) -> Iterator[PackedShard]:
        if not tasks:
            return
        with ray_session(scaling.address, processes):
            from csdn.cluster.ray_data import checked, in_order

            blocks = in_order(len(tasks), _Pack(tasks)).iter_batches(batch_size=None, batch_format="numpy")
            for _, block in zip(tasks, blocks, strict=True):
                yield checked(block)["packed"][0]

    return packer


class _Pack:
    """Task n packs shard n."""

    def __init__(self, tasks: Sequence[ShardTask]) -> None:
        self.tasks, self.folder = tasks, Path.cwd()

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        column = np.empty(1, object)
        column[0] = self._pack(self.tasks[number])
        return {"packed": column}

    def _pack(self, task: ShardTask) -> PackedShard:
        if self.folder.is_dir():  # addresses may be relative to the project folder, if the node has it
            os.chdir(self.folder)
        if not task.settings.store:
            return pack(replace(task, folder=self.folder / task.folder))
        with tempfile.TemporaryDirectory() as folder:
            return pack(replace(task, folder=Path(folder)))
