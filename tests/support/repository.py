"""The workspace of the tests as a Git and DVC repository of its own, as a clone would be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import workspace


def make_repository(folder: Path, **changes: Any) -> Path:
    """A committed copy of the project with small parameters; no stage has run."""
    workspace.make_workspace(folder, **changes)
    for name in (".gitattributes", ".gitignore", ".dvc/.gitignore"):
        shutil.copy(workspace.ROOT / name, folder / name)
    shutil.copytree(workspace.ROOT / ".dvc/plots", folder / ".dvc/plots")
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "project")
    return folder


def git(folder: Path, *arguments: str) -> str:
    """Run git with a person's name set; returns what it printed."""
    person = ("-c", "user.name=tester", "-c", "user.email=tester@localhost")
    return workspace.run(folder, "git", *person, *arguments).stdout
