"""Kills a run of the pipeline, runs it again, and compares every output with an untouched run's."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from killed_run import Point, Run
from make_images import make_drop, people_named
from repository import make_repository
from workspace import STAGES

from csdn.data.checkpoint_store import OVERHEAD
from csdn.ingest.ledger import write_ledger
from csdn.ingest.sync import open_drop

OUTPUTS = ("data/shards", "data/index", "data/*.parquet", "models", "metrics", "evaluation", "report")
# Written at once; shards and indexes grow drop by drop.
FOLDERS = ("models/prompts", "models/embedding", "evaluation", "report")
LEFTOVERS = (
    ".state/[!.]*.lock",  # of a state; those of files begin with a dot, and stay
    ".state/*/stage",
    "data/**/.*.partial",
    "models/**/.*.partial",
    ".*.partial",
)
# Some seconds of work in each stage, and processes of their own in each that reads images.
PARAMETERS = {
    "prompts.tokens.epochs": 60,
    "prompts.integration.epochs": 120,
    "embedding.epochs": 12,
    "evaluation.batch_size": 2,
    "scaling.loader_workers": 2,
}


@dataclass(frozen=True)
class Outcome:
    """What came of a point; `differs` names the outputs that are not those of the untouched run."""

    point: Point
    killed: str
    seconds: float  # from the stage's start to the kill
    found: str  # what the second run could continue from
    differs: list[str]


class Campaign:
    """An untouched run, kept as it was before each stage, and points that are tried on copies of it."""

    def __init__(self, folder: Path, images: int = 20, **changes: Any) -> None:
        """images: of each camera and person in the large drop; changes: to PARAMETERS."""
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, dict[str, str]] = {}  # outputs after each stage
        project = make_repository(folder / "project", **PARAMETERS | changes)
        add_drops(folder / "drops", project, images)
        save_often(project)
        for stage in STAGES:
            shutil.copytree(project, folder / stage, symlinks=True)
            run = Run(project, stage)
            run.begun()
            if run.ended(within=600):
                raise AssertionError(f"{stage} failed without a kill:\n{run.text()}")
            self.seconds[stage] = time.monotonic() - run.began
            self.expected[stage] = digests(project)

    def try_point(self, point: Point, last: str = STAGES[-1]) -> Outcome:
        """Kill, look, run again up to the stage `last`, compare. Raises AssertionError for half an output."""
        copy = self.folder / "copy"
        killed, seconds = self.kill(point, copy)
        halves = half_outputs(digests(copy), self.expected[point.stage])
        assert not halves, f"{point} left half an output: {halves}"
        found = last_position(copy)
        again = Run(copy, last)
        if again.ended(within=600):
            raise AssertionError(f"{point}: the second run failed:\n{again.text()}")
        return Outcome(point, killed, seconds, found, self.differences(copy, last))

    def kill(self, point: Point, copy: Path) -> tuple[str, float]:
        """Run the point's stage in a copy and kill it; returns who was killed, and after how many seconds."""
        while True:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(self.folder / point.stage, copy, symlinks=True)
            run = Run(copy, point.stage)
            run.begun()
            killed = run.kill(point, self.seconds[point.stage])
            seconds = time.monotonic() - run.began
            run.ended(within=60)
            if killed:
                return killed, seconds
            self.seconds[point.stage] = seconds  # the machine has become faster since: once more

    def differences(self, copy: Path, last: str) -> list[str]:
        """Outputs that are not those of the untouched run after the stage `last`; what the kill left over."""
        differ = {path for path, _ in digests(copy).items() ^ self.expected[last].items()}
        leftovers = [path for pattern in LEFTOVERS for path in copy.glob(pattern)]
        return sorted(differ) + [str(path.relative_to(copy)) for path in leftovers]


def save_often(project: Path) -> None:
    """A stage of seconds is saved some times too, as one of hours is."""
    state = project / "csdn/data/checkpoint_store.py"
    text = state.read_text(encoding="utf-8")
    assert text.count(f"OVERHEAD = {OVERHEAD} ") == 1
    state.write_text(text.replace(f"OVERHEAD = {OVERHEAD} ", "OVERHEAD = 0.5 "), encoding="utf-8")


def add_drops(folder: Path, project: Path, images: int) -> None:
    """Folders beside the built-in people, so that ingest can stop between drops, and between shards of one.

    The people of the large one have no infrared image yet: no other stage has more to do for them.
    """
    small = make_drop(folder / "small", people_named(24, "small"))
    large = make_drop(folder / "large", people_named(60, "large"), modalities=["visible"], images=images)
    drops = [open_drop("builtin:tiny", "builtin")[0]]
    drops += [open_drop(str(drop), "cameras")[0] for drop in (small, large)]
    write_ledger(drops, project / "data/drops.json")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the outputs, by its path; what is still under a temporary name is none."""
    files = [file for name in OUTPUTS for path in folder.glob(name) for file in (path, *path.rglob("*"))]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file() and ".partial" not in str(file)
    }


def half_outputs(left: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Files that a kill left, under an output's name, other than the untouched run has; folders not whole."""
    wrong = sorted(path for path, _ in left.items() - expected.items())
    for folder in FOLDERS:
        here, whole = ([path for path in paths if path.startswith(folder)] for paths in (left, expected))
        if 0 < len(here) < len(whole):
            wrong.append(folder)
    return wrong


def last_position(folder: Path) -> str:
    """What the state of the unfinished stage says of how far it is."""
    files = sorted(folder.glob(".state/*/**/state.json"), key=lambda file: file.stat().st_mtime)
    if not files:
        return "its start"
    position = json.loads(files[-1].read_text())["position"]
    part = [name[:16] for name in files[-1].relative_to(folder / ".state").parts[1:-1]]
    return " ".join([*part, *(f"{name} {value}" for name, value in position.items() if type(value) is int)])
