"""The metrics of the stage evaluate and of the gate, compared with those of an older checkout.

    git worktree add /tmp/before 160933f
    python benchmarks/evaluation.py --before /tmp/before [--people 500 2000]

The features are random numbers in the sizes of the small CLIP; people, images and cameras are those of the
built-in sets (2 visible images by each of 4 cameras, 4 infrared ones by each of 2; 39.2 % are test people).
Each side runs in a process of its own with one thread, in turns; the best CPU time counts. Figures of both
sides are compared to six digits, first ranks and APs of all queries among them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from machine import machine

ROOT = Path(__file__).parents[1]
TEST_SHARE = 0.392
WIDTHS = {"trained": 1280, "clip": 256, "hog": 3780}
SIGNAL = 0.35  # of the person in a feature, in standard deviations of its noise
GATE = SimpleNamespace(min_people=50, bootstrap_samples=2000, confidence=0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="checkout of the older commit")
    parser.add_argument("--people", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-queries", type=int, help="measure this side alone, with so many queries")
    parser.add_argument("--measure", nargs=2, metavar=("PART", "PEOPLE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]), options.max_queries)))
        return
    print(f"{date.today()}  {machine()}, one thread; CPU seconds, peak memory in addition to the features")
    sides = {"before": options.before, "after": ROOT} if options.before else {"after": ROOT}
    for people in options.people:
        for part in ("evaluate", "gate"):
            runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for _ in range(options.rounds):
                for side, checkout in sides.items():
                    runs[side].append(alone(checkout, part, people, options.max_queries))
            show(people, part, runs)


def alone(checkout: Path, part: str, people: int, max_queries: int | None) -> dict[str, Any]:
    """A measurement in a process of its own, with the code of `checkout`."""
    command = [sys.executable, __file__, "--measure", part, str(people)]
    command += ["--max-queries", str(max_queries)] if max_queries else []
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(done.stdout)


def show(people: int, part: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    best = {side: min(run["seconds"] for run in found) for side, found in runs.items()}
    peak = {side: min(run["peak GiB"] for run in found) for side, found in runs.items()}
    images = runs["after"][0]["images"]
    cells = "  ".join(f"{side} {best[side]:.1f} s, {peak[side]:.2f} GiB" for side in runs)
    ratio = f"  ratio {best['before'] / best['after']:.2f}" if "before" in best else ""
    print(f"{part}, {people:,} people, {images:,} test images:  {cells}{ratio}", flush=True)
    if "before" in runs:
        differ = differences(runs["before"][0]["figures"], runs["after"][0]["figures"])
        print(f"  {differ} figures differ, of {len(runs['after'][0]['figures'])}")


def differences(one: dict[str, float], other: dict[str, float]) -> int:
    """Figures that both sides have, and that are not the same to six digits."""
    return sum(abs((one[name] or 0) - (other[name] or 0)) > 1.5e-6 for name in one.keys() & other.keys())


# One measurement, with the code of the checkout on PYTHONPATH.


def measure(part: str, people: int, max_queries: int | None) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    experiment, features = made(people, max_queries)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM; Linux only
    before, began = memory("VmRSS"), time.process_time()
    figures = globals()[f"run_{part}"](experiment, features)
    return {
        "seconds": time.process_time() - began,
        "peak GiB": (memory("VmHWM") - before) / 2**20,
        "images": len(experiment.labels.people),
        "figures": figures,
    }


def memory(name: str) -> int:
    """KiB of this process: VmRSS (now) or VmHWM (peak)."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def made(people: int, max_queries: int | None) -> tuple[Any, dict[str, Any]]:
    """The experiment of the protocol cameras, and the features of each method."""
    import numpy as np

    from csdn.evaluation.protocols import protocol
    from csdn.evaluation.run import Experiment
    from csdn.evaluation.scores import Labels

    rows = [
        (person, modality, camera)
        for modality, cameras, images in (("infrared", (5, 6), 4), ("visible", (1, 2, 3, 4), 2))
        for camera in cameras
        for person in range(round(TEST_SHARE * people))
        for _ in range(images)
    ]
    person, camera = (np.array([row[column] for row in rows]) for column in (0, 2))
    index = {
        "person": [f"p{number:05}" for number in person],
        "modality": [row[1] for row in rows],
        "camera": [f"cam{number}" for number in camera],
        "key": [f"{number:08}" for number in range(len(rows))],
    }
    searches = protocol("cameras", index, trials=10)
    if max_queries:
        from csdn.evaluation.protocols import sample_queries

        searches = [sample_queries(search, max_queries, 0, n) for n, search in enumerate(searches)]
    draws, features = np.random.default_rng(0), {}
    for name, width in WIDTHS.items():
        centres = draws.standard_normal((person.max() + 1, width), np.float32)
        noise = draws.standard_normal((len(rows), width), np.float32)
        found = SIGNAL * centres[person] * (4 / width) ** 0.25 + noise
        features[name] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return Experiment(None, index, Labels(person, camera), searches, "cameras", {}), features


def distances_of(features: Any) -> Any:
    try:
        from csdn.evaluation.distances import FeatureDistances
    except ImportError:  # the older checkout
        from csdn.evaluation.scores import feature_distances as FeatureDistances
    return FeatureDistances(features)


def run_evaluate(experiment: Any, features: dict[str, Any]) -> dict[str, float]:
    from csdn.evaluation.run import evaluate

    methods = {name: distances_of(found) for name, found in features.items()}
    results = evaluate(experiment, methods, seed=0)
    figures = {
        f"{method} {direction} {figure} {kind}": value
        for method, directions in results.figures.items()
        if method not in ("counts", "open_set")
        for direction, found in directions.items()
        for figure, kinds in found.items()
        for kind, value in kinds.items()
    }
    for row in results.queries:
        figures |= {f"{row['direction']} {row['key']} {name}": row[name] for name in ("first_rank", "ap")}
    return figures


def run_gate(experiment: Any, features: dict[str, Any]) -> dict[str, float]:
    from csdn.retraining.comparison import compare

    models = [distances_of(found) for found in (features["trained"], features["trained"][:, ::2].copy())]
    return {
        f"{one.direction} {one.metric} {one.query_camera} {one.gallery_camera} {name}": getattr(one, name)
        for one in compare(experiment, *models, "today", GATE, 0)
        for name in ("champion", "candidate", "low", "high")
    }


if __name__ == "__main__":
    main()
