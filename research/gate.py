"""The uncertainty of the gate with 150 test people, and what it rejects: the tables of research/gate.md.

    python research/gate.py train WORK          # minutes per model
    python research/gate.py judge WORK

`train` makes a project below WORK for each seed of each candidate: the demo's settings on the set "gate" (90
training people, 150 test people) and what came after it. `judge` runs the gate: it compares the models
trained on that set alone with each other, and the other candidates with some of these as champions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("benchmarks", "tests/support")]
from garbage import write_noise, write_shuffled
from gate_project import name_champion
from gate_tables import read, tables
from machine import machine
from projects import copy_project

from csdn.ingest.ledger import write_ledger
from csdn.ingest.sync import open_drop
from csdn.params import Params, load_params
from csdn.retraining.gate_run import run_gate
from csdn.runtime.console import progress
from csdn.runtime.files import write_json
from csdn.synthetic.sets import SETS

ROOT = Path(__file__).parents[1]
# Stage -> an output that shows that it is finished.
STAGES = {
    "ingest": "data/samples.parquet",
    "prompts": "models/prompts",
    "embedding": "models/embedding",
}
TEST_PERCENT = 60
KNOWN = SETS["gate"]._replace(visible=2, infrared=4, first_image=11)  # twice what the set itself has


class Candidate(NamedTuple):
    """The drop that follows the set "gate", and the seeds of the models trained on both."""

    drop: str
    seeds: range


HEALTHY = "another seed"
CHAMPIONS = 2  # healthy models with which the other candidates are compared
CANDIDATES = {
    HEALTHY: Candidate("", range(3)),
    "more data": Candidate("builtin:gate-more", range(1)),
    "labels shuffled": Candidate("shuffled", range(1)),
    "new people, labels shuffled": Candidate("strangers", range(1)),
    "noise": Candidate("noise", range(1)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "judge"))
    parser.add_argument("work", type=Path)
    given = parser.parse_args()
    if given.what == "train":
        train_all(given.work.resolve())
    else:
        judge_all(given.work.resolve())


def train_all(work: Path) -> None:
    """Train the models that are missing."""
    for name, seed, project in projects(work):
        if not (project / "data/drops.json").exists():
            make_project(project, drop_of(CANDIDATES[name].drop, work), seed)
        for stage, made in STAGES.items():
            if not (project / made).exists():
                subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=project, check=True, env=here())


def projects(work: Path) -> Iterator[tuple[str, int, Path]]:
    for name, candidate in CANDIDATES.items():
        for seed in candidate.seeds:
            yield name, seed, work / f"{candidate.drop.removeprefix('builtin:') or 'nothing-new'}-{seed}"


def drop_of(name: str, work: Path) -> str:
    """The address of the second drop of a candidate; it is written if missing."""
    folder = work / "drops" / name
    if name in ("shuffled", "strangers", "noise") and not folder.exists():
        if name == "noise":
            write_noise(folder, KNOWN)
        else:
            write_shuffled(folder, KNOWN if name == "shuffled" else KNOWN._replace(first=45_001))
    return str(folder) if folder.exists() and name else name


def judge_all(work: Path) -> None:
    """Run the gate on all trained models, then print the tables."""
    trained = [one for one in projects(work) if (one[2] / "models/embedding").exists()]
    params = load_params(ROOT / "params.yaml")
    here = {
        "data": params.data.model_copy(update={"test_percent": TEST_PERCENT}),
        "scaling": params.scaling.model_copy(update={"threads": 1, "loader_workers": 0}),
    }
    judged = []
    for _, champion_seed, champion in (one for one in trained if one[0] == HEALTHY):
        for name, seed, candidate in trained:
            if candidate != champion and (name == HEALTHY or champion_seed < CHAMPIONS):
                result = judge(candidate, champion, params.model_copy(update=here))
                print(f"{name} {seed}, champion of seed {champion_seed}: {result['decision']}", flush=True)
                judged.append(read(name, result))
    print("", machine(), "", *tables(judged, params.gate), sep="\n")


def judge(candidate: Path, champion: Path, params: Params) -> dict[str, Any]:
    """The decision of the gate on a candidate, stored in its project for the next call."""
    kept = candidate / "judged" / f"{champion.name}.json"
    if not kept.exists():
        make_champion(champion, candidate)
        write_json(kept, run_gate(params, candidate, partial(progress, "gate")))
    return json.loads(kept.read_text(encoding="utf-8"))


def make_champion(champion: Path, candidate: Path) -> None:
    """Copy the champion's files to where `csdn fetch-champion` would write them."""
    shutil.rmtree(candidate / "champion", ignore_errors=True)
    shutil.copytree(champion / "models/embedding", candidate / "champion/embedding")
    name_champion(candidate, champion / "data")


def make_project(project: Path, drop: str, seed: int) -> None:
    own = {"seed": seed, "data.test_percent": TEST_PERCENT}
    copy_project(project, own | {"scaling.threads": 1, "scaling.loader_workers": 0})
    addresses = filter(None, ("builtin:gate", drop))
    drops = [open_drop(a, "builtin" if a.startswith("builtin:") else "cameras")[0] for a in addresses]
    write_ledger(drops, project / "data/drops.json")


def here() -> dict[str, str]:
    """The environment without PYTHONPATH, so that a copy of the project imports its own code."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


if __name__ == "__main__":
    main()
