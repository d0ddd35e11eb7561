"""A champion of a few people, and data in which some of them have left and others are new."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from make_images import Project, make_drop, people_named
from workspace import ROOT

from csdn.data.features import extract_local
from csdn.ingest.identities import SplitRule
from csdn.params import Params, parse_params
from csdn.training.champion import Start
from csdn.training.embedding import run_embedding, train_local
from csdn.training.prompts import run_prompts
from csdn.training.warm_start import WarmStart

_SPLITS = SplitRule("csdn", 40)
_NAMES = people_named(60)
TRAIN = [name for name in _NAMES if _SPLITS.split(_SPLITS.bucket(name)) == "train"]
TEST = [name for name in _NAMES if name not in TRAIN]
# Rows follow the names within a drop: those of the people who stayed are others today.
FIRST, STAYED, NEW = TRAIN[1:7], TRAIN[3:7], [TRAIN[0], *TRAIN[7:9]]
SMALL = {
    "model.weights": str(ROOT / "csdn/model/assets/clip-small.safetensors"),
    "model.image_size": [32, 16],
    "prompts.tokens.epochs": 2,
    "prompts.integration.epochs": 2,
    "embedding.epochs": 2,
    "embedding.identities_per_batch": 3,
    "warm_start.epochs": 1,
    "scaling.threads": 1,
    "scaling.loader_workers": 0,
    "scaling.device": "cpu",
}


class Killed(Exception):
    pass


def make_params(**changes: Any) -> Params:
    """params.yaml, small, with dotted keys changed."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for key, value in (SMALL | changes).items():
        *path, last = key.split(".")
        section = raw
        for name in path:
            section = section[name]
        section[last] = value
    return parse_params(raw)


def make_data(folder: Path, people: Iterable[str]) -> Path:
    """The data folder of these people, and of a few test people."""
    project = Project(folder)
    project.add(make_drop(folder / "drop", [*people, *TEST[:2]]))
    project.ingest()
    return project.data


@dataclass
class Runs:
    """Stages in a folder of their own; `steps` are the reports of the last one, `embedded` its images."""

    folder: Path
    data: Path
    params: Params
    warm: WarmStart | None = None

    def __post_init__(self) -> None:
        self.steps: list[tuple[str, int]] = []
        self.embedded = 0

    def prompts(self, kill: tuple[str, int] | None = None) -> dict[str, float]:
        """Stage 1; killed when a phase reports this step."""
        out = (self.folder / "prompts", self.folder / "prompts.json")
        return self._run(run_prompts, kill, *out, self._progress, self._embedder)

    def embedding(self, kill: tuple[str, int] | None = None) -> None:
        """Stage 2, behind stage 1."""
        out = (self.folder / "prompts", self.folder / "embedding", self.folder / "embedding.json")
        self._run(run_embedding, kill, *out, train_local, self._progress)

    def files(self, stage: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / stage).iterdir()}

    def _run(self, stage: Any, kill: tuple[str, int] | None, *arguments: Any) -> Any:
        self.steps, self.embedded, self._kill = [], 0, kill
        self.folder.mkdir(exist_ok=True)
        with contextlib.chdir(self.folder):  # where .state is
            return stage(self.params, self.data, *arguments, warm=self.warm)

    @contextlib.contextmanager
    def _progress(self, phase: str, *_: Any, **__: Any) -> Iterator[Any]:
        def report(done: int, *_: Any) -> None:
            self.steps.append((phase, done))
            if self._kill == (phase, done):
                raise Killed

        yield report

    def _embedder(self, walk: Any, *arguments: Any) -> Any:
        self.embedded += len(walk.table)
        return extract_local(walk, *arguments)


def make_champion(folder: Path, data: Path, params: Params) -> WarmStart:
    """Both stages from nothing, as the champion that training starts from."""
    runs = Runs(folder, data, params)
    runs.prompts()
    runs.embedding()
    return WarmStart(start_of(folder), folder)


def start_of(folder: Path) -> Start:
    weights = {"prompts": "prompts.safetensors", "embedding": "model.safetensors"}
    hashes = {
        stage: hashlib.sha256((folder / stage / file).read_bytes()).hexdigest()
        for stage, file in weights.items()
    }
    return Start(version="v1", **hashes)
