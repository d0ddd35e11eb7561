"""The speed-up by a second worker, the recovery from a killed one, and Ray Data compared with the DataLoader.

    python benchmarks/scaling.py

Each worker has one thread and one core. RN50 with random weights, 288x144 JPEGs read from shards.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from csdn.cluster.session import ray_session
from csdn.cluster.train import train_on_ray
from csdn.data.catalog import SampleTable
from csdn.data.checkpoint_store import CheckpointStore
from csdn.data.loader import TrainLoader
from csdn.params import load_params
from csdn.training.embedding import EmbeddingWork

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from feed_data import train_source, write_data
from machine import machine
from ray_work import make_params, make_state, make_work, worker_pids, write_images
from speed_parts import SIZE, rn50

ROOT = Path(__file__).parents[1]
PADDING = 10
PEOPLE, IMAGES = 8, 4  # of a batch, as published
FED_PEOPLE = 24
ROUNDS, EPOCHS, READY = 3, 16, 100  # per loader; the first READY batches may be prefetched and do not count
STEPS, SETTLING = 9, 5  # of training; the first SETTLING steps are slower (page faults) and do not count
RECOVERY_STEP = 6


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=STEPS, help="training steps for each number of workers")
    steps = options.parse_args().steps
    if steps <= SETTLING:
        options.error(f"--steps {steps}: give more than {SETTLING}; the first {SETTLING} do not count")
    print(f"{date.today()}  {machine()}\n")
    with tempfile.TemporaryDirectory() as folder, ray_session(None, cpus=4):
        root = Path(folder)
        fed = write_data(root / "fed", people=FED_PEOPLE, visible=40, infrared=40, sizes=(SIZE,))
        feeds(fed, root / "fed" / "shards")
        trained = write_data(
            root / "trained", people=PEOPLE, visible=steps * IMAGES, infrared=steps * IMAGES, sizes=(SIZE,)
        )
        workers(trained, root, steps)
        print(f"\nnext step after a worker was killed: {recovery(root):.0f} s   (aim < 40)")


def feeds(table: SampleTable, shards: Path) -> None:
    """Images per second of each loader with two processes; the rounds alternate, the best of each counts."""
    from csdn.cluster.ray_loader import RayTrainLoader

    source = train_source(table, shards, PEOPLE, IMAGES, SIZE, PADDING)
    local = TrainLoader(source, 2)
    best = {"DataLoader": 0.0, "Ray Data": 0.0}
    firsts = []
    for _ in range(ROUNDS):
        best["DataLoader"] = max(best["DataLoader"], rate(local)[0])
        images, first = rate(RayTrainLoader(source, EPOCHS))
        best["Ray Data"] = max(best["Ray Data"], images)
        firsts.append(first)
    print(f"{'loader, 2 processes':24}{'images/s':>10}{'ratio':>8}   aim")
    for name, images in best.items():
        aim = ">= 1" if name == "Ray Data" else ""
        print(f"{name:24}{images:10.0f}{images / best['DataLoader']:8.2f}   {aim}")
    print(f"Ray Data's first batch comes after {statistics.median(firsts):.1f} s   (aim < 3)\n")


def rate(feed: object) -> tuple[float, float]:
    """(images per second after the first READY batches, seconds until the first batch)."""
    times = [time.perf_counter()]
    for epoch in range(EPOCHS):
        times += (time.perf_counter() for _ in feed.epoch(epoch))
    batches = len(times) - 1 - READY
    return 2 * PEOPLE * IMAGES * batches / (times[-1] - times[READY]), times[1] - times[0]


def workers(table: SampleTable, root: Path, steps: int) -> None:
    """Seconds per step of the same training with one and with two workers."""
    print(f"{'training, RN50':24}{'s a step':>10}{'ratio':>8}{'efficiency':>12}{'waits for data':>16}   aim")
    seconds = {}
    for count in (1, 2):
        seconds[count], waiting = train(table, root, steps, count)
        ratio = seconds[1] / seconds[count]
        aim = ">= 1.7" if count == 2 else ""
        print(
            f"{f'{count} workers, 1 thread':24}{seconds[count]:10.2f}{ratio:8.2f}{ratio / count:12.0%}"
            f"{waiting:16.1%}   {aim}"
        )


def train(table: SampleTable, root: Path, steps: int, count: int) -> tuple[float, float]:
    """(mean seconds of a step, median fraction of it spent waiting for data), without the first steps."""
    params = load_params(ROOT / "params.yaml")
    scaling = {"workers": count, "threads": 1, "cpus_per_worker": 1, "loader_workers": 1}
    params = params.model_copy(update={"scaling": params.scaling.model_copy(update=scaling)})
    seen: list[tuple[float, int, float]] = []
    state = root / f"state-{count}"
    train_on_ray(params, work(table, root, params), CheckpointStore(state), watch(seen))
    (began, first, _), *rest = seen[SETTLING - 1 :]
    ended, last, _ = rest[-1]
    return (ended - began) / (last - first), statistics.median(share for _, _, share in rest)


def recovery(root: Path) -> float:
    """The longest time without a step after one of two workers is killed, with a small network."""
    killed: list[int] = []
    times: list[float] = []

    def report(done: int, *_: object) -> None:
        if not killed and done >= RECOVERY_STEP:
            killed.append(worker_pids()[0])
            os.kill(killed[0], signal.SIGKILL)
        if killed:
            times.append(time.perf_counter())

    small = make_work(write_images(root / "small"))
    train_on_ray(make_params(2), small, make_state(root / "state-killed"), report)
    return max(after - before for before, after in pairwise(times))


def watch(seen: list[tuple[float, int, float]]) -> Callable[..., None]:
    def report(done: int, _total: int, values: dict[str, float]) -> None:
        seen.append((time.perf_counter(), done, values["waiting"]))

    return report


def work(table: SampleTable, root: Path, params: object) -> EmbeddingWork:
    """One epoch of stage 2 with RN50."""
    torch.manual_seed(0)
    model = rn50(PEOPLE, text_layers=1).train().channels_last()  # the text is a table here
    settings = params.embedding.model_copy(update={"epochs": 1})
    source = train_source(table, root / "trained" / "shards", PEOPLE, IMAGES, SIZE, PADDING)
    return EmbeddingWork(model, torch.randn(PEOPLE, model.config.embed_dim), source, settings)


if __name__ == "__main__":
    main()
