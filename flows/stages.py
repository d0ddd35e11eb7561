"""The steps of a run as tasks: each is a process, its lines the task's log.

Only what ended for want of an answer from outside is tried again. A parameter, the data, or a busy workspace
would give the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefect import State, Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun

from csdn.retraining import steps
from csdn.runtime.errors import is_unavailable
from csdn.training.champion import read_champion
from flows.artifacts import show_data, show_figures
from flows.progress import LogWithProgress

WAIT_SECONDS = [10, 60, 300]  # before each further attempt; a stage has tried for a minute itself


def nobody_answered(task: Task, task_run: TaskRun, state: State) -> bool:
    """Whether a task is worth another attempt."""
    return is_unavailable(state.data) if isinstance(state.data, BaseException) else False


PATIENT = {
    "cache_policy": NO_CACHE,
    "retries": len(WAIT_SECONDS),
    "retry_delay_seconds": WAIT_SECONDS,
    "retry_condition_fn": nobody_answered,
}


@task(task_run_name="{stage}", **PATIENT)
def run_stage(stage: str, folder: Path, environment: Mapping[str, str] | None = None) -> None:
    """Bring one stage up to date."""
    log = LogWithProgress(stage, get_run_logger())
    steps.repro(stage, folder, log, environment)
    log.end()


@task(task_run_name="pull from {remote}", **PATIENT)
def pull(folder: Path, remote: str) -> None:
    """Bring from a DVC remote what is missing here."""
    steps.pull(folder, remote, get_run_logger().info)


@task(task_run_name="push to {remote}", **PATIENT)
def push(folder: Path, remote: str) -> None:
    """Copy to a DVC remote what it lacks."""
    steps.push(folder, remote, get_run_logger().info)


def run_ingest(folder: Path, environment: Mapping[str, str]) -> None:
    """The first stage, and what it found."""
    run_stage(steps.STAGES[0], folder, environment)
    show_data(folder)


def run_others(folder: Path, environment: Mapping[str, str]) -> None:
    """The four stages that compute, and their figures beside those of the champion, who is there to beat."""
    for stage in steps.STAGES[1:]:
        run_stage(stage, folder, environment)
    show_figures(folder, read_champion(folder).champion)
