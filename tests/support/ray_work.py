"""A small stage 2 for the tests of Ray, which a single process can train too."""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from feed_data import train_source, write_data
from killed_run import children
from processes import command_of, descendants
from small_network import SMALL
from worker_loop import settings

from csdn.data.catalog import load_dataset
from csdn.data.checkpoint_store import CheckpointStore
from csdn.data.loader import TrainLoader
from csdn.model import CSDN
from csdn.params import Params, load_params
from csdn.training.checkpoint import LocalState
from csdn.training.embedding import EmbeddingWork, train_embedding

# The marks of modules that run Ray.
ON_RAY = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="csdn.cluster is for Linux"),
]
IDENTITIES, PEOPLE, IMAGES, SIZE = 12, 6, 2, (64, 32)


def write_images(root: Path) -> Path:
    write_data(root, people=IDENTITIES)
    return root


def make_work(root: Path, epochs: int = 3) -> EmbeddingWork:
    """Five steps an epoch; the same weights and images each time."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = CSDN(replace(SMALL, identities=IDENTITIES)).channels_last()
    text = torch.randn(IDENTITIES, SMALL.embed_dim, generator=torch.Generator().manual_seed(1))
    table = load_dataset(root).train_table()
    source = train_source(table, root / "shards", PEOPLE, IMAGES, SIZE, padding=2)
    made = settings(torch.float32, PEOPLE, IMAGES).model_copy(update={"epochs": epochs})
    return EmbeddingWork(model, text, source, made)


def make_state(folder: Path, storage: str | None = None) -> CheckpointStore:
    return CheckpointStore(folder, storage)


def make_params(workers: int, **scaling: object) -> Params:
    params = load_params(Path(__file__).parents[2] / "params.yaml")
    changed = {"workers": workers, "threads": 1, "loader_workers": 1, "checkpoint_seconds": 0, **scaling}
    return params.model_copy(update={"scaling": params.scaling.model_copy(update=changed)})


def train_plainly(work: EmbeddingWork, state: CheckpointStore) -> list[dict]:
    loader = TrainLoader(work.source, 0)
    with LocalState(state) as saves:
        return train_embedding(work.model, work.text_table, loader, work.settings, saves, lambda *_: None)


def difference(one: CSDN, other: CSDN) -> float:
    """Relative difference of all weights and buffers."""
    flat = [torch.cat([v.double().flatten() for v in m.state_dict().values()]) for m in (one, other)]
    return float((flat[1] - flat[0]).norm() / flat[0].norm())


def same_bytes(one: CSDN, other: CSDN) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def require_token() -> str:
    """Clusters that this process starts require a token from now on: Ray reads it once in a process."""
    os.environ["RAY_AUTH_MODE"] = "token"
    return os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def nodes_that_train(cluster: Any) -> list[Any]:
    """The nodes of Ray's test cluster on which a training worker runs."""

    def trains(pid: int) -> bool:
        with suppress(OSError):  # it has ended
            return b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        return False

    def processes(node: Any) -> list[int]:
        return [child for raylet in node.all_processes["raylet"] for child in children(raylet.process.pid)]

    return [node for node in cluster.worker_nodes if any(map(trains, processes(node)))]


def worker_pids() -> list[int]:
    """Process ids of the training workers of this run's local Ray instance."""
    return sorted(process.pid for process in descendants() if "RayTrainWorker" in command_of(process))
