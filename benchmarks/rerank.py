"""Time and peak memory of k-reciprocal re-ranking at Market-1501's size, and extrapolated to 120,000 images.

    python benchmarks/rerank.py

Random features of 2,048 numbers: 31 images of each identity around a centre, so that images have k-reciprocal
neighbours as those of a trained network have. Each size runs in a process of its own, twice; the faster run
counts. Time is extrapolated as a N^2 + b N for N images (products of all pairs; encodings), memory as c + d N
and the result of 4 q g bytes. The same for Market-1501's size from the two smaller ones shows how far off
that is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from machine import machine

from csdn.evaluation.rerank import rerank
from csdn.runtime.process import available_cores

NUMBERS, IMAGES_OF_IDENTITY, NOISE, ROUNDS = 2048, 31, 1.5, 2
SIZES = ((842, 4933), (1684, 9866), (3368, 19_732))  # queries, gallery; the last is Market-1501's
LARGE = (20_000, 100_000)
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--measure", nargs=2, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure)))
        return
    print(f"{date.today()}  {machine()}; {NUMBERS:,} numbers, k1 = 20, k2 = 6, weight 0.3\n")
    print(
        f"{'queries x gallery':>22}{'seconds':>10}{'peak GiB':>10}   of the process, with features and result"
    )
    found = []
    for queries, gallery in SIZES:
        found.append(min((alone(queries, gallery) for _ in range(ROUNDS)), key=lambda run: run["seconds"]))
        show(queries, gallery, found[-1]["seconds"], found[-1]["peak"])
    show(*SIZES[-1], *extrapolated(found[:-1], *SIZES[-1]), "extrapolated from the smaller sizes")
    show(
        *LARGE,
        *extrapolated(found, *LARGE),
        f"extrapolated; {result_bytes(*LARGE) / GIB:.1f} GiB are the result",
    )


def show(queries: int, gallery: int, seconds: float, peak: float, remark: str = "") -> None:
    sizes = f"{queries:,} x {gallery:,}"
    print(f"{sizes:>22}{seconds:>10.1f}{peak / GIB:>10.2f}   {remark}", flush=True)


def alone(queries: int, gallery: int) -> dict[str, Any]:
    """A measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(queries), str(gallery)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measure(queries: int, gallery: int) -> dict[str, Any]:
    torch.set_num_threads(available_cores())
    features = made(queries + gallery)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM; Linux only
    began = time.perf_counter()
    rerank(features[:queries], features[queries:])
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
    return {"queries": queries, "gallery": gallery, "seconds": seconds, "peak": peak}


def made(images: int) -> np.ndarray:
    """Features of unit length, float32 [images, NUMBERS], in no order."""
    draws = np.random.default_rng(0)
    identities = -(-images // IMAGES_OF_IDENTITY)
    features = draws.standard_normal((images, NUMBERS), np.float32)
    features *= NOISE
    features += draws.standard_normal((identities, NUMBERS), np.float32)[
        draws.permutation(images) % identities
    ]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features


def extrapolated(runs: Sequence[dict[str, Any]], queries: int, gallery: int) -> tuple[float, float]:
    """Seconds and peak bytes of another size, by least squares of relative errors."""
    images = np.array([run["queries"] + run["gallery"] for run in runs], float)
    seconds = np.array([run["seconds"] for run in runs])
    rest = np.array([run["peak"] - result_bytes(run["queries"], run["gallery"]) for run in runs])
    size = float(queries + gallery)
    by_pairs = fitted(np.stack([images**2, images], 1), seconds) @ [size**2, size]
    by_images = fitted(np.stack([images**0, images], 1), rest) @ [1, size]
    return float(by_pairs), float(by_images) + result_bytes(queries, gallery)


def fitted(terms: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(terms / values[:, None], np.ones(len(values)), rcond=None)[0]


def result_bytes(queries: int, gallery: int) -> int:
    return 4 * queries * gallery


if __name__ == "__main__":
    main()
