"""What another machine needs to continue a run whose machine is lost, if `scaling.checkpoint_dir` is set.

    Git's origin    the run's branch, pushed after each stage: dvc.lock names the outputs so far
    DVC's remote    these outputs
    checkpoint_dir  the checkpoints of stage 2, below the run's name instead of the clone's

A scan on the other machine finds the run by the hash of what decides its result (csdn.retraining.workspace),
gets the outputs of the finished stages, and stage 2 continues from the furthest checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from csdn.data.checkpoint_store import folder_name
from csdn.params import load_params
from csdn.retraining import dvc, git
from csdn.retraining.branches import trailer
from csdn.retraining.lock import RUNS
from csdn.retraining.workspace import Run
from csdn.runtime.errors import UserError


def checkpoints_of_run(folder: Path) -> dict[str, str]:
    """The environment with which the stages in a run's working tree name their checkpoints after the run.

    Empty in any other folder: the clone's name counts there (csdn.data.checkpoint_store.clone_name).
    """
    return {"CSDN_CLONE": _clone_of(folder.name)} if _is_run(folder) else {}


def checkpoint_folders(workspace: Path) -> set[str]:
    """The names in `scaling.checkpoint_dir` of all runs that a commit of any branch names."""
    runs = git.format_commits(workspace, trailer("Run"), "--all")
    return {folder_name(_clone_of(run)) for run in runs if run}


def _clone_of(run: str) -> str:
    return f"run {run}"


def share(stage: str, folder: Path, log: Callable[[str], None]) -> None:
    """Push the outputs of a run's finished stages, and its branch; where that fails, only log the reason.

    Does nothing without `scaling.checkpoint_dir`, or in a folder that is not a run's working tree.
    """
    if not _is_run(folder) or not load_params(folder / "params.yaml").scaling.checkpoint_dir:
        return
    run = Run(folder.name, folder.resolve().parents[1], base="")
    try:
        dvc.push(folder)
        git.push(run.workspace, {f"refs/heads/{run.branch}": run.commit(f"{stage} is finished")})
    except UserError as error:  # the run goes on here; another machine would begin where the last push ended
        log(f"{stage}: not shared with other machines: {error}")


def _is_run(folder: Path) -> bool:
    return folder.parent.name == RUNS
