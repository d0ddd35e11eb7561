"""A copy of the project in a temporary folder, small enough to run whole stages in seconds."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from csdn.cli.presets import apply_preset
from csdn.ingest.forgotten import Forgotten, forgotten_text
from csdn.ingest.ledger import write_ledger
from csdn.ingest.sync import open_drop
from csdn.training.champion import ChampionFile, write_champion

ROOT = Path(__file__).parents[2]
FILES = (
    *("csdn", "flows", "stages", "params.yaml", "dvc.yaml", "prefect.yaml"),
    *(".dvcignore", ".dvc/config", "metrics/ablation.json"),
)
STAGES = ("ingest", "prompts", "embedding", "evaluate", "report")

# Too small to say anything of quality: it shows that the line runs, and that it runs the same way twice.
SMALL = {
    "ingest.watch": [],
    "prompts.tokens.epochs": 1,
    "prompts.integration.epochs": 1,
    "embedding.epochs": 2,
    "embedding.identities_per_batch": 4,
    "evaluation.trials": 2,
    "report.queries": 2,
    "scaling.threads": 1,
    "scaling.loader_workers": 0,
}


def make_workspace(folder: Path, address: str = "builtin:tiny", **changes: Any) -> Path:
    """The project's code and definitions with small parameters and one drop in its ledger.

    Nothing was trained there, and no alias given, whatever happened in this clone.
    """
    for name in FILES:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)  # with its byte code: compiling it anew takes a second
        else:
            shutil.copy(source, target)
    apply_preset("demo", folder / "params.yaml")
    set_params(folder, SMALL | changes)
    write_champion(ChampionFile(champion=None, start=None), folder)
    set_ledger(folder, address)
    (folder / "data/aliases.json").write_text("{}\n")
    (folder / "data/forgotten.json").write_bytes(forgotten_text(Forgotten()))
    keep_night_away(folder / "prefect.yaml")
    return folder


def keep_night_away(file: Path) -> None:
    """Let the nightly look be half a day from now: a test at night would meet a run that it did not start."""
    text, hour = file.read_text(), (datetime.datetime.now(datetime.UTC).hour + 12) % 24
    moved, count = re.subn(r'cron: "0 \d+ ', f'cron: "0 {hour} ', text)
    assert count == 1, text
    file.write_text(moved)


def set_params(folder: Path, changes: Mapping[str, Any], file: str = "params.yaml") -> None:
    """Set dotted keys in the workspace's params.yaml, or another such file."""
    yaml = YAML()
    params = yaml.load(folder / file)
    for key, value in changes.items():
        *path, last = key.split(".")
        section = params
        for name in path:
            section = section[name]
        section[last] = value
    yaml.dump(params, folder / file)


def set_ledger(folder: Path, address: str) -> None:
    """Make `address` (builtin:NAME, or a folder in the cameras layout) the only drop of the ledger."""
    layout = "builtin" if address.startswith("builtin:") else "cameras"
    (folder / "data").mkdir(exist_ok=True)
    write_ledger([open_drop(address, layout)[0]], folder / "data/drops.json")


def run(folder: Path, *command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in the workspace with this environment's programs; output is captured."""
    options = {"env": environment()} | options
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, **options)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)} gave {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def run_stages(folder: Path, *stages: str) -> None:
    for stage in stages or STAGES:
        run(folder, "python", "-m", f"stages.{stage}")


def environment() -> dict[str, str]:
    """This process's environment, with the programs beside its Python found first."""
    programs = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
