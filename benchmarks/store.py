"""The object store: the loader from it and from the cache, ingest into it, and a sync that finds nothing.

    python benchmarks/store.py [--before FOLDER]

The store is a moto server on loopback, which answers one request at a time and takes a core itself: figures
are for comparing clients. `--before` names a checkout of a commit to compare with, such as a Git worktree;
what it does runs in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core per process
# A process of `--before` imports everything from there.
sys.path.insert(0, os.environ.get("BENCHMARK_ROOT", str(Path(__file__).parents[1])))
sys.path.insert(0, f"{sys.path[0]}/tests/support")

import numpy as np
from feed_data import jpeg, train_source, write_data
from make_images import Project, write

from csdn.data.catalog import load_dataset
from csdn.data.loader import TrainLoader
from csdn.ingest.sync import sync_ledger

SIZE, PADDING, PEOPLE, IMAGES = (288, 144), 10, 8, 4
ROUNDS = 4
DROPS, IMAGES_OF_DROP = 1000, 20
PLACE = "s3://cameras/shards"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--before", type=Path, help="a checkout of an earlier commit")
    options.add_argument("--serve", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.serve:
        serve(*given.serve)
        return
    from machine import machine
    from s3_server import S3Server, s3_environment

    print(f"{date.today()}  {machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        server = S3Server(Path(folder) / "log")
        try:
            with s3_environment(server):
                compare(Path(folder), server, given.before)
                scan(Path(folder), server)
        finally:
            server.stop()


def compare(folder: Path, server, before: Path | None) -> None:
    """Images per second; contenders alternate and the best round counts, so that load affects all alike."""
    data = folder / "data"
    write_data(data, people=24, visible=40, infrared=40, sizes=(SIZE,))
    for path in (data / "shards").iterdir():
        server.bucket.upload_file(str(path), f"shards/{path.name}")
    drop = folder / "drop"
    rng = np.random.default_rng(0)
    for person in range(40):
        for modality in ("visible", "infrared"):
            for n in range(100):
                write(drop / modality / "c1" / f"p{person}" / f"{n}.jpg", jpeg(rng, *SIZE))
    write(drop / "_SUCCESS", b"")
    now = Path(__file__).parents[1]
    kinds = [("feed", "local"), ("feed", "store"), ("feed", "cache"), ("ingest", "store")]
    contenders = {f"{what}, {where}": (what, where, now) for what, where in kinds}
    if before:
        contenders |= {f"{what}, store, before": (what, "store", before) for what in ("feed", "ingest")}
    servers = {name: Contender(*contender, folder) for name, contender in contenders.items()}
    best = dict.fromkeys(contenders, 0.0)
    for _ in range(ROUNDS):
        for name, contender in servers.items():
            best[name] = max(best[name], contender())
    for contender in servers.values():
        contender.end()
    print(f"{'':24}{'images/s':>10}{'ratio':>8}")
    for name, rate in best.items():
        base = best["feed, local" if name.startswith("feed") else "ingest, store"]
        print(f"{name:24}{rate:10.0f}{rate / base:8.2f}", flush=True)


class Contender:
    """A process that does one thing whenever it is asked, with the code of one checkout."""

    def __init__(self, what: str, where: str, root: Path, folder: Path) -> None:
        environment = {**os.environ, "BENCHMARK_ROOT": str(root.absolute())}
        command = [sys.executable, __file__, "--serve", f"{what} {where}", str(folder)]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self) -> float:
        print("go", file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve(what: str, folder: str) -> None:
    run = feeding(what.split()[1], Path(folder)) if what.startswith("feed") else ingesting(Path(folder))
    for _ in sys.stdin:
        began = time.perf_counter()
        images = run()
        print(json.dumps(images / (time.perf_counter() - began)), flush=True)


def feeding(where: str, folder: Path) -> Callable[[], int]:
    """An epoch with two processes; the first, in which they start and a cache fills, is not measured."""
    table = load_dataset(folder / "data").train_table()
    place = folder / "data/shards"
    if where != "local":
        place = PLACE
        from csdn.data import shards

        if hasattr(shards, "StoredPlace"):  # not in commits before it
            cache = (folder / "cache", 10**9) if where == "cache" else ()
            place = shards.StoredPlace(PLACE, *cache)
    made = TrainLoader(train_source(table, place, PEOPLE, IMAGES, SIZE, PADDING), 2)
    epochs = iter(range(10**6))

    def run() -> int:
        return sum(len(batch.visible_view1) + len(batch.infrared) for batch in made.epoch(next(epochs)))

    run()
    return run


def ingesting(folder: Path) -> Callable[[], int]:
    """Ingest of a local drop by two processes, its shards into the store, under a prefix of their own."""

    def run() -> int:
        project = Project(Path(tempfile.mkdtemp(dir=folder)), processes=2)
        project.add(folder / "drop")
        project.ingest(store=f"s3://cameras/ingest-{project.root.name}")
        return len(list((folder / "drop").rglob("*.jpg")))

    return run


def scan(folder: Path, server) -> None:
    """A sync that finds nothing, among drops that are known."""
    from csdn.data.storage import Store

    names = [*(f"visible/c/p/{image}.jpg" for image in range(IMAGES_OF_DROP)), "_SUCCESS"]
    objects = {f"cameras/in/{n:04d}/{name}": f"{n}".encode() for n in range(DROPS) for name in names}
    Store("s3://cameras").filesystem.pipe(objects)
    data = folder / "sync/data"
    drops, _ = sync_ledger([], ["s3://cameras/in"], data)
    print(f"\n{len(drops)} known drops of {IMAGES_OF_DROP} images")
    for name, thorough in (("a nightly sync", False), ("a thorough sync", True)):
        asked, began = server.requests("", "/cameras"), time.perf_counter()
        sync_ledger(drops, ["s3://cameras/in"], data, thorough)
        seconds = time.perf_counter() - began
        print(f"{name:18}{server.requests('', '/cameras') - asked:6} requests {seconds:7.1f} s")


if __name__ == "__main__":
    main()
