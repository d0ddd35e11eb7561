"""The commands of README.md, "Retrain on new camera data", and of docs/index.md work when they are pasted."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from repository import git, make_repository
from workspace import environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# So little training that the model stays about as good as CLIP, and the gate promotes every candidate.
PARAMS = {"embedding.epochs": 1, "embedding.learning_rate": 0.0001}
WARM_START = {"warm_start.epochs": 1, "warm_start.learning_rate": 0.0001}
GATE = {
    "gate.rank1_margin": 100.0,
    "gate.map_margin": 100.0,
    "gate.max_pair_drop": 100.0,
    "gate.min_people": 2,
}


def test_the_lines_on_retraining_work_when_pasted(tmp_path):
    section = README[README.index("## Retrain on new camera data") :]
    lines = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1]
    assert len(lines.splitlines()) <= 10
    assert lines in (ROOT / "docs/index.md").read_text(encoding="utf-8")
    project = make_repository(tmp_path / "project", **PARAMS, **WARM_START, **GATE)
    git(project, "remote", "add", "origin", str(tmp_path / "where-it-was-cloned-from"))
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/activate").touch()
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["bash", "-e", "-c", lines],
        cwd=project,
        env=environment() | identity,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "retrain: 50 new people, 800 images" in done.stdout
    assert re.findall(r" promoted +(v\d)", done.stdout) == ["v1", "v2"]
    assert (project / "champion/embedding/model.safetensors").is_file()
    assert git(project, "status", "--porcelain") == ""
