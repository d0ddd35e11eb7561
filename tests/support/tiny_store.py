"""Reads large batches for two workers through an object store of 80 MB, and prints how many images each had.

    python tests/support/tiny_store.py DATA

In a process of its own, because Ray is started with another object store than csdn.cluster.session gives it.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from feed_data import train_source

from csdn.data.catalog import load_dataset
from csdn.data.loader import TrainSource, row_bytes

SIZE, WORKERS, PEOPLE, STORE_BYTES = (288, 144), 2, 4, 80 * 10**6
STEPS = {16: 12, 64: 4, 256: 2}  # by images of a modality for each worker


def main(root: Path) -> None:
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

    import csdn.cluster  # noqa: F401  (before ray: sets what Ray reads)

    table = load_dataset(root).train_table()
    quiet = {"include_dashboard": False, "log_to_driver": False}
    ray.init("local", num_cpus=WORKERS, object_store_memory=STORE_BYTES, **quiet)
    for images, steps in STEPS.items():
        source = train_source(table, root / "shards", PEOPLE, WORKERS * images // PEOPLE, SIZE)
        began = time.perf_counter()
        with ThreadPoolExecutor(WORKERS) as threads:
            list(threads.map(lambda rank, made=source, count=steps: check(made, rank, count), range(WORKERS)))
        rate = 2 * images * WORKERS * steps / (time.perf_counter() - began)
        print(images)
        print(f"{images} images of a modality for each worker: {rate:.0f} images/s", file=sys.stderr)
    ray.shutdown()


def check(source: TrainSource, rank: int, steps: int) -> None:
    """Read one batch of each epoch, and compare the last one with the plan's."""
    from csdn.cluster.ray_loader import RayTrainLoader

    assert source.steps_per_epoch == 1
    loader = RayTrainLoader(source, steps, rank, WORKERS)
    for epoch in range(steps):
        (batch,) = loader.epoch(epoch)
    expected = source.finished(row_bytes(source.rows, source.plan(epoch).slice(rank, WORKERS)[0]))
    for name in ("visible_view1", "visible_view2", "infrared", "labels"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name


if __name__ == "__main__":
    main(Path(sys.argv[1]))
