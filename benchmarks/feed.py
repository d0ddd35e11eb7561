"""The speed of the loader against a plain loop over simplejpeg, its memory, and the plan of a large epoch.

    python benchmarks/feed.py

Images are 288x144 JPEGs, batches 8 people x 4 visible + 4 infrared images, two views of each visible one.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core per process

import numpy as np
import simplejpeg
import torch

from csdn.data.augment import crop_views, draw_views, resize
from csdn.data.batch import VIEWS
from csdn.data.catalog import SampleTable, load_dataset
from csdn.data.loader import TrainLoader
from csdn.data.rng import generator
from csdn.data.sampler import BatchPlan, epoch_plan
from csdn.data.views import finish_views

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from feed_data import train_source, write_data
from machine import machine

SIZE, PADDING, PEOPLE, IMAGES = (288, 144), 10, 8, 4
ROUNDS, LOADED, MILLIONS = 5, 34_000, 10
MIB = 2**20


def main() -> None:
    part = sys.argv[1:]
    if not part:
        print(f"{date.today()}  {machine()}\n")
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            write_data(data, people=24, visible=40, infrared=40, sizes=(SIZE,))
            speed(data)
            if sys.platform == "linux":  # the memory of a group of processes is read from /proc
                alone("memory", str(data))
            else:
                print("\npeak memory: measured on Linux only")
        alone("plan")
    elif part[0] == "memory":
        memory(Path(part[1]))
    else:
        plan()


def alone(*part: str) -> None:
    """Run a part in a separate process, so that its peak memory is measured alone."""
    subprocess.run([sys.executable, __file__, *part], check=True)


def speed(data: Path) -> None:
    """Images per second; contenders alternate and the best round counts, so that load affects all alike."""
    table = load_dataset(data).train_table()
    loaders = {processes: make_loader(table, data, processes) for processes in (1, 2)}
    loop = PlainLoop(table, data)
    contenders: dict[str, Callable[[int], int]] = {
        "plain loop over simplejpeg": loop,
        "two such loops at once": TwoAtOnce(loop),
    }
    for processes, made in loaders.items():
        contenders[f"loader, {processes} process{'es' * (processes > 1)}"] = lambda e, made=made: sum(
            len(batch.visible_view1) + len(batch.infrared) for batch in made.epoch(e)
        )
    best = dict.fromkeys(contenders, 0.0)
    for epoch in range(ROUNDS):
        for name, run in contenders.items():
            began = time.perf_counter()
            images = run(epoch)
            best[name] = max(best[name], images / (time.perf_counter() - began))
    base = next(iter(best.values()))
    print(f"{'':28}{'images/s':>10}{'ratio':>8}{'aim':>8}")
    for (name, rate), aim in zip(best.items(), ("", "(limit)", ">= 0.9", ">= 1.5"), strict=True):
        print(f"{name:28}{rate:10.0f}{rate / base:8.2f}{aim:>8}")


def make_loader(table: SampleTable, data: Path, processes: int) -> TrainLoader:
    return TrainLoader(train_source(table, data / "shards", PEOPLE, IMAGES, SIZE, PADDING), processes)


class PlainLoop:
    """The loop without the loader: read, decode, resize, augment, in one process."""

    def __init__(self, table: SampleTable, data: Path) -> None:
        self.table = table
        self.plan = make_loader(table, data, 0).source.plan
        self.shards = [os.open(data / "shards" / name, os.O_RDONLY) for name in table.shard_names]
        self.pixels = np.empty((len(VIEWS), PEOPLE * IMAGES, 3, *SIZE), np.uint8)

    def __call__(self, epoch: int) -> int:
        plan = self.plan(epoch)
        return sum(self.batch(plan[step]) for step in range(len(plan)))

    def batch(self, row: BatchPlan) -> int:
        visible, infrared = self.read(row.visible), self.read(row.infrared)
        boxes, channels = [], []
        for stream, images, view in zip(VIEWS, (visible, visible, infrared), self.pixels, strict=True):
            rng = generator(0, stream, row.epoch, row.step)
            drawn = draw_views(stream, len(images), SIZE, PADDING, rng)
            crop_views(images, drawn, view)
            boxes.append(drawn.box)
            channels.append(drawn.channels)
        arrays = self.pixels, np.stack(boxes), np.stack(channels)
        finish_views(*map(torch.from_numpy, arrays), "imagenet")
        return len(visible) + len(infrared)

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        images = []
        for index in indices:
            shard = self.shards[self.table.shard[index]]
            data = os.pread(shard, self.table.size[index], self.table.offset[index])
            images.append(resize(simplejpeg.decode_jpeg(data, colorspace="RGB"), SIZE))
        return images


class TwoAtOnce:
    """Two plain loops in two processes that return no batches: the upper limit for two processes here."""

    def __init__(self, loop: PlainLoop) -> None:
        fork = multiprocessing.get_context("fork")
        self.ends = [fork.Pipe() for _ in range(2)]
        for _, end in self.ends:
            fork.Process(target=self.serve, args=(loop, end), daemon=True).start()

    @staticmethod
    def serve(loop: PlainLoop, end: Connection) -> None:
        while True:
            end.send(loop(end.recv()))

    def __call__(self, epoch: int) -> int:
        for end, _ in self.ends:
            end.send(epoch)
        return sum(end.recv() for end, _ in self.ends)


def memory(data: Path) -> None:
    """Peak memory of the loader's processes together (proportional set sizes), without torch's import."""
    small = load_dataset(data).train_table()
    times = -(-LOADED // len(small))
    table = replace(
        small,
        **{
            field.name: np.tile(getattr(small, field.name), times)
            for field in fields(small)
            if isinstance(getattr(small, field.name), np.ndarray)
        },
    )
    before = peak = footprint()
    loaded = 0
    made = make_loader(table, data, 2)
    for epoch in range(2):
        for batch in made.epoch(epoch):
            loaded += len(batch.visible_view1) + len(batch.infrared)
            if batch.step % 20 == 0:
                peak = max(peak, footprint())
    print(
        f"\npeak memory of loading {loaded} images, 2 processes: {(peak - before) / MIB:.0f} MiB (aim < 500)"
    )


def footprint() -> int:
    """Bytes of this process and its descendants; shared pages count once."""
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in family("self")]
    return sum(1024 * int(text.split("\nPss:")[1].split()[0]) for text in rollups if text)


def family(pid: str) -> list[str]:
    """The process and its descendants: the loader's processes are children of a fork server."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    children = [child for file in lists for child in file.read_text().split()]
    return [pid, *(one for child in children for one in family(child))]


def plan() -> None:
    images, people = MILLIONS * 10**6, 10**6
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.tile(np.arange(people), 2), rng.integers(0, people, images - 2 * people)])
    modalities = np.concatenate([np.repeat([0, 1], people), rng.integers(0, 2, images - 2 * people)])
    modalities = modalities.astype(np.int8)
    began = time.perf_counter()
    batches = len(epoch_plan(labels, modalities, PEOPLE, IMAGES, 0, 0))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"plan of {MILLIONS} million images, {batches} batches: {seconds:.1f} s (aim < 30), "
        f"peak of the process {peak / 2**30:.2f} GiB (aim < 2)"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
