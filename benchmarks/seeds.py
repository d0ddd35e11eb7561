"""Metrics of the demo and its baselines over several seeds: the table of README.md.

    python benchmarks/seeds.py --seeds 0 1 2

Each seed trains in a copy of the project in a temporary folder, on the same images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from projects import copy_project

from csdn.params import set_value

STAGES = ("ingest", "prompts", "embedding", "evaluate")
METHODS = ("chance", "hog", "clip", "trained")
METRICS = ("rank1", "rank10", "mAP", "mINP")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        copy_project(workspace, {})
        runs = [run_seed(workspace, seed) for seed in seeds]
    for direction in runs[0]["counts"]:
        print(f"\n{direction.replace('_', ' ')}: mean +- standard deviation over seeds {seeds}, in %")
        print(f"{'':10}" + "".join(f"{metric:>16}" for metric in METRICS))
        for method in METHODS:
            print(f"{method:10}" + "".join(cell(runs, method, direction, metric) for metric in METRICS))


def run_seed(workspace: Path, seed: int) -> dict[str, Any]:
    """metrics/evaluation.json of one seed."""
    set_value(workspace / "params.yaml", "seed", seed)
    for stage in STAGES:
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=workspace, check=True)
    return json.loads((workspace / "metrics/evaluation.json").read_text(encoding="utf-8"))


def cell(runs: list[dict[str, Any]], method: str, direction: str, metric: str) -> str:
    """Mean over the trials of each seed; their mean and deviation over the seeds."""
    values = [run[method][direction][metric]["mean"] for run in runs]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):8.1f} +- {spread:4.1f}"


if __name__ == "__main__":
    main()
