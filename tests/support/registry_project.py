"""A small project under Git and DVC, whose one stage is a script of some lines: for tests of the registry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from make_images import make_drop, people_named
from repository import git
from workspace import ROOT, run, set_params

from csdn.data.catalog import PEOPLE_SCHEMA, table_of, write_table
from csdn.ingest.ledger import Drop, merge_ledgers, read_ledger, write_ledger
from csdn.retraining import run as retrain
from csdn.retraining.scan import scan
from csdn.retraining.workspace import Run
from csdn.training.champion import ChampionFile, write_champion

DROPS = [Drop(f"{n}" * 64, f"/in/monday-{n}", "cameras") for n in range(1, 8)]
OUTS = ["models/prompts", "models/embedding", "data/samples.parquet", "data/people.parquet", "evaluation"]
METRICS = ["metrics/ingest.json", "metrics/headline.json"]

# What stands for the pipeline: its files depend on the ledger, the seed and where training starts.
STAGE = """
import json, pathlib, yaml
ledger = json.load(open("data/drops.json"))
accepted = [drop["id"] for drop in ledger["drops"] if drop["status"] == "accepted"]
seed, start = yaml.safe_load(open("params.yaml"))["seed"], json.load(open("champion.json"))["start"]
made = json.dumps([accepted, seed, start])
def write(path, text):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
for drop in accepted:
    if not pathlib.Path("data/shards", drop[:16]).exists():
        write(f"data/shards/{drop[:16]}", drop)
        print("read", drop[:4])
write("data/samples.parquet", "samples " + made)
write("data/people.parquet", "people " + made)
for name, file in ("prompts", "prompts"), ("embedding", "model"):
    write(f"models/{name}/{file}.safetensors", name + made)
    write(f"models/{name}/config.json", "{}")
thresholds = {"format": 1, "model": "0" * 64, "flip_tta": True, "directions": {}}
write("evaluation/thresholds.json", json.dumps(thresholds))
write("evaluation/cmc.csv", "rank")
images = {"visible": 4, "infrared": 5}
counts = {"drops": {"held": []}, "people": {"train": 3, "test": 2}}
counts |= {"images": {"train": images, "test": images}}
counts |= {"cameras": {"visible": {"cam1": 8}, "infrared": {"cam2": 10}}}
write("metrics/ingest.json", json.dumps(counts))
write("metrics/headline.json", json.dumps({"vis_to_ir": {"rank1": 50 + len(accepted)}, "test_people": 2}))
"""


def make_project(folder: Path, drops: tuple[Drop, ...] = (DROPS[0],)) -> Path:
    """A committed project on branch main, with no champion and nothing run."""
    for name in (
        "params.yaml",
        ".gitattributes",
        ".gitignore",
        ".dvcignore",
        ".dvc/config",
        ".dvc/.gitignore",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    stage = {
        "cmd": "python stage.py",
        "deps": ["stage.py", "data/drops.json"],
        "params": ["seed", {"champion.json": ["start"]}],
        "outs": [{"data/shards": {"persist": True}}, *OUTS],
        "metrics": [{path: {"cache": False}} for path in METRICS],
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}))
    (folder / "stage.py").write_text(STAGE)
    (folder / "data").mkdir()
    write_ledger(drops, folder / "data/drops.json")
    write_champion(ChampionFile(champion=None, start=None), folder)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "project")
    return folder


def make_watching_project(folder: Path) -> Path:
    """A project without a drop or a champion, which watches the folder `in` beside it."""
    project = make_project(folder / "project", drops=())
    (folder / "in").mkdir()
    (project / "data/aliases.json").write_text("{}")
    thresholds = {"retrain.images": 100, "retrain.people": 5, "retrain.days": 30}
    set_params(project, {"ingest.watch": [str(folder / "in")], **thresholds})
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "where camera data lands")
    return project


def make_champion(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the project a champion, trained on a drop with ten people; its files are not fetched again."""
    upload(project, "monday", people_named(10))
    run_ = scan(project).run
    work(run_)
    write_gate(run_, "promote", "there is no champion yet")
    assert retrain.apply_decision(run_).event == "promoted"
    rows = [(n, person, 0, "train", "train", 4, 2) for n, person in enumerate(people_named(10))]
    monkeypatch.setattr("csdn.retraining.scan.fetch_champion", lambda *_: None)
    monkeypatch.setattr("csdn.retraining.workspace.fetch_champion", lambda *_: None)
    write_table(project / "champion/data/people.parquet", table_of(rows, PEOPLE_SCHEMA))
    return project


def upload(project: Path, name: str, people: Sequence[str], images: int = 2) -> Path:
    """Put a drop of 12 images a person (6 an image) into the watched place."""
    return make_drop(project.parent / "in" / name, people, images=images)


def write_gate(run_: Run, decision: str, *reasons: str) -> None:
    (run_.folder / "metrics/gate.json").write_text(json.dumps({"decision": decision, "reasons": reasons}))


def add_origin(folder: Path, bare: Path) -> Path:
    """A bare repository as the project's `origin`, with what the project has."""
    run(folder, "git", "init", "--quiet", "--bare", "--initial-branch", "main", str(bare))
    git(folder, "remote", "add", "origin", str(bare))
    git(folder, "push", "--quiet", "--set-upstream", "origin", "main")
    return bare


def clone(bare: Path, folder: Path) -> Path:
    run(bare, "git", "clone", "--quiet", str(bare), str(folder))
    return folder


def arrive(*drops: Drop):
    """A change of the ledger: these drops have come, those that it has stay."""

    return lambda ledger: merge_ledgers(ledger, [], drops)


def work(run_, by_dvc: bool = False) -> str:
    """What a run does between its begin and its gate; returns what it printed. DVC's part takes seconds."""
    command = ("dvc", "repro") if by_dvc else ("python", "stage.py")
    return run(run_.folder, *command).stdout


def champion(folder: Path, revision: str = "HEAD") -> str | None:
    """The version that champion.json of a commit names."""
    entry = json.loads(git(folder, "show", f"{revision}:champion.json"))["champion"]
    return entry and entry["version"]


def commit_file(folder: Path, name: str, text: str) -> str:
    """Commit a file as a colleague would; returns the commit."""
    (folder / name).write_text(text)
    git(folder, "add", name)
    git(folder, "commit", "--quiet", "--message", f"change {name}")
    return git(folder, "rev-parse", "HEAD").strip()


def tags(folder: Path) -> list[str]:
    return git(folder, "tag", "--list").split()


def ledger(folder: Path) -> list[Drop]:
    return read_ledger(folder / "data/drops.json")
