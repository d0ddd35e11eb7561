"""How sure the gate can be with 150 test people, and what it refuses: the tables of docs/gate.md.

    python benchmarks/gate.py train WORK          # some minutes a model
    python benchmarks/gate.py judge WORK

`train` makes one project below WORK for each newcomer of NEWCOMERS: the demo's settings on the set "gate"
(90 training people, 150 test people). `judge` lets the gate compare each newcomer with each healthy model of
another seed as champion.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml import YAML

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from garbage import write_noise, write_shuffled

from csdn.builtin.drops import SETS
from csdn.data.arrivals import examine
from csdn.data.drops import write_ledger

ROOT = Path(__file__).parents[1]
# Each with what it has made when it is done.
STAGES = {
    "ingest": "data/samples.parquet",
    "prompts": "models/prompts",
    "embedding": "models/embedding",
}
INPUTS = ("csdn", "stages", "params.yaml", "champion.json", "data/aliases.json")
KNOWN = SETS["gate"]._replace(visible=2, infrared=4, first_image=11)  # twice what the set itself has


class Newcomer(NamedTuple):
    """What comes after the set "gate", and the seeds of the models trained on both."""

    drop: str
    seeds: range


NEWCOMERS = {
    "healthy": Newcomer("", range(3)),
    "shuffled": Newcomer("shuffled", range(1)),
    "more data": Newcomer("builtin:gate-more", range(1)),
    "noise": Newcomer("noise", range(1)),
    "strangers": Newcomer("strangers", range(1)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "judge"))
    parser.add_argument("work", type=Path)
    given = parser.parse_args()
    if given.what == "train":
        train_all(given.work.resolve())


def train_all(work: Path) -> None:
    """Train what is not trained yet."""
    for name, seed, project in projects(work):
        if not (project / "data/drops.json").exists():
            make_project(project, drop_of(NEWCOMERS[name].drop, work), seed)
        for stage, made in STAGES.items():
            if not (project / made).exists():
                subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=project, check=True, env=here())


def projects(work: Path) -> Iterator[tuple[str, int, Path]]:
    for name, newcomer in NEWCOMERS.items():
        for seed in newcomer.seeds:
            yield name, seed, work / f"{name.replace(' ', '-')}-{seed}"


def drop_of(name: str, work: Path) -> str:
    """The address of what comes with a newcomer, made if it is not there."""
    folder = work / "drops" / name
    if name in ("shuffled", "strangers", "noise") and not folder.exists():
        if name == "noise":
            write_noise(folder, KNOWN)
        else:
            write_shuffled(folder, KNOWN if name == "shuffled" else KNOWN._replace(first=45_001))
    return str(folder) if folder.exists() and name else name


def make_project(project: Path, drop: str, seed: int) -> None:
    for name in INPUTS:
        source, target = ROOT / name, project / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    params["seed"], params["data"]["test_percent"] = seed, 60
    params["scaling"] |= {"threads": 1, "feed_processes": 0}
    yaml.dump(params, project / "params.yaml")
    addresses = filter(None, ("builtin:gate", drop))
    drops = [examine(a, "builtin" if a.startswith("builtin:") else "cameras")[0] for a in addresses]
    write_ledger(drops, project / "data/drops.json")


def here() -> dict[str, str]:
    """The environment in which a copy of the project imports its own code."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


if __name__ == "__main__":
    main()
