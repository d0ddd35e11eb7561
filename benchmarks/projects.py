"""Copies of the project in which a benchmark runs the stages with its own parameters."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csdn.params import set_value

ROOT = Path(__file__).parents[1]
INPUTS = ("csdn", "stages", "params.yaml", "champion.json", "data/drops.json", "data/aliases.json")


def copy_project(folder: Path, values: Mapping[str, Any]) -> None:
    """Copy what the stages need into `folder`, and set `values` (by dotted key) in its params.yaml."""
    for name in INPUTS:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    for key, value in values.items():
        set_value(folder / "params.yaml", key, value)
