"""Ingest compared with decoding alone, on the same JPEG files and cores.

    python benchmarks/ingest.py

Ingest lists, reads, hashes and verifies each image, and writes shards and index. "Decoding alone" reads each
file and decodes it to RGB with simplejpeg in as many processes, started before the measurement. The rounds
alternate.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import simplejpeg

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from feed_data import jpeg
from machine import machine
from make_images import Project

from csdn.runtime.process import available_cores

HEIGHT, WIDTH = 288, 144
PEOPLE, IMAGES = 200, 60  # of each modality: 24,000 files
DISTINCT = 400  # encoded pictures; each file is one of them with its own JPEG comment
ROUNDS = 3


def main() -> None:
    cores = available_cores()
    print(f"{date.today()}  {machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        drop = Path(folder) / "drop"
        paths = write_drop(drop)
        times: dict[str, list[float]] = {"decoding alone": [], "ingest": []}
        with multiprocessing.get_context("spawn").Pool(cores) as pool:
            decode_all(pool, paths)  # warm-up: processes started, files in the page cache
            for number in range(ROUNDS):
                times["decoding alone"].append(seconds(lambda: decode_all(pool, paths)))
                project = Project(Path(folder) / f"project {number}", processes=cores)
                project.add(drop)
                times["ingest"].append(seconds(project.ingest))
    base = min(times["decoding alone"])
    print(f"{len(paths)} JPEGs of {HEIGHT}x{WIDTH}, {cores} processes, best of {ROUNDS}")
    print(f"{'':16}{'seconds':>9}{'images/s':>10}{'ratio':>8}{'aim':>8}")
    for (name, found), aim in zip(times.items(), ("", "<= 1.5"), strict=True):
        best = min(found)
        print(f"{name:16}{best:9.2f}{len(paths) / best:10.0f}{best / base:8.2f}{aim:>8}")


def write_drop(root: Path) -> list[Path]:
    """A drop in the layout `cameras`. It stays in the page cache, so that disks are not compared."""
    rng = np.random.default_rng(0)
    pictures = [jpeg(rng, HEIGHT, WIDTH) for _ in range(DISTINCT)]
    paths = []
    for person in range(PEOPLE):
        for modality in ("visible", "infrared"):
            folder = root / modality / "north" / f"person {person:03d}"
            folder.mkdir(parents=True)
            for number in range(IMAGES):
                paths.append(folder / f"{number:03d}.jpg")
                paths[-1].write_bytes(commented(pictures[len(paths) % DISTINCT], len(paths)))
    (root / "_SUCCESS").touch()
    return paths


def commented(picture: bytes, number: int) -> bytes:
    """The JPEG with a comment after its first marker: different bytes, same pixels."""
    text = b"%08d" % number
    return picture[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + picture[2:]


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def decode_all(pool: multiprocessing.pool.Pool, paths: Sequence[Path]) -> None:
    # 1,000 files per part, about as many as a shard holds, so that both split the work alike.
    pool.map(decode, [paths[start : start + 1000] for start in range(0, len(paths), 1000)], chunksize=1)


def decode(paths: Sequence[Path]) -> None:
    for path in paths:
        simplejpeg.decode_jpeg(path.read_bytes(), colorspace="RGB")


if __name__ == "__main__":
    main()
