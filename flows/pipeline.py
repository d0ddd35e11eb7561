"""The pipeline as a Prefect flow: each stage of dvc.yaml is a task around `dvc repro` of that stage alone.

Which stages have work to do is DVC's decision: one that is up to date is a task of a few seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.process import run

PROJECT = Path(__file__).resolve().parents[1]
STAGES = ("ingest", "prompts", "embedding", "evaluate", "report")


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def run_stage(stage: str, workspace: Path) -> None:
    """Bring one stage up to date; its output is this task's log, its last lines the error if it fails."""
    dvc = [sys.executable, "-m", "dvc"]
    run([*dvc, "repro", "--single-item", stage], workspace, get_run_logger().info)


@flow(name="csdn")
def pipeline(workspace: str | None = None) -> None:
    """Bring the whole pipeline up to date in `workspace`, a clone of the project; by default in this one."""
    folder = Path(workspace or PROJECT).resolve()
    for stage in STAGES:
        run_stage(stage, folder)
