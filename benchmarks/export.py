"""onnxruntime on exported files compared with this project's own forward pass.

    python benchmarks/export.py              both sizes, one thread
    python benchmarks/export.py --threads 2

csdn-small at 64x32 and CLIP RN50 (random weights) at 288x144, with flip test-time augmentation. All sides get
the same uint8 pictures and return features of unit length, which are compared before the measurement.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import torch
from machine import machine
from speed_parts import rn50

from csdn.model import CSDN, fuse_batch_norms, load_clip
from csdn.model.device import configure_torch
from csdn.search.embedder import Embedder
from csdn.search.export import PRECISIONS, write_onnx

SMALL = Path(__file__).parents[1] / "csdn/model/assets/clip-small.safetensors"
BATCHES = {"csdn-small 64x32": (1, 64), "RN50 288x144": (1, 8)}
ROUNDS = 5  # alternated; the fastest counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    configure_torch(threads, "cpu")
    torch.manual_seed(0)
    small = CSDN.from_clip(load_clip("csdn-small", SMALL), identities=1, image_size=(64, 32))
    print(f"{date.today()}  {machine()}, {threads} threads; torch {torch.__version__}", end="")
    print(f", onnxruntime {onnxruntime.__version__}\n")
    print(f"{'images/s':22}{'batch':>6}{'ours':>10}", *(f"{f'onnx {name}':>22}" for name in PRECISIONS))
    for name, network in zip(BATCHES, (small, rn50(text_layers=1)), strict=True):
        embedder = Embedder(fuse_batch_norms(network), "imagenet", "")
        with TemporaryDirectory() as folder:
            sessions = [session(embedder, precision, Path(folder), threads) for precision in PRECISIONS]
        for batch in BATCHES[name]:
            measure(name, batch, embedder, sessions)


def session(
    embedder: Embedder, precision: str, folder: Path, threads: int
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from pictures to features by the exported file of infrared images."""
    path = folder / f"{precision}.onnx"
    write_onnx(embedder, "infrared", precision, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    opened = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pictures: opened.run(["features"], {"images": pictures})[0]


def measure(name: str, batch: int, embedder: Embedder, sessions: list[Callable]) -> None:
    size = (batch, 3, *embedder.image_size)
    pictures = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    sides = [lambda pictures: embedder.embed(pictures, "infrared"), *sessions]
    expected = sides[0](pictures)
    for side, tolerance in zip(sides[1:], (1e-4, 1e-2), strict=True):
        np.testing.assert_allclose(side(pictures), expected, atol=tolerance)
    rounds = [[seconds(side, pictures) for side in sides] for _ in range(ROUNDS)]
    times = np.min(rounds, axis=0)
    speeds = [batch / one for one in times]
    ratios = (f"{speed:,.1f} ({speed / speeds[0]:.2f}x)" for speed in speeds[1:])
    print(f"{name:22}{batch:>6}{speeds[0]:>10,.1f}", *(f"{ratio:>22}" for ratio in ratios), flush=True)


def seconds(side: Callable[[np.ndarray], object], pictures: np.ndarray) -> float:
    """Seconds of a call, the mean over as many as take a fifth of a second."""
    began, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - began < 0.2:
        side(pictures)
        calls += 1
    return (time.perf_counter() - began) / calls


if __name__ == "__main__":
    main()
