"""What both flows share: their parameters, checked, and the steps of a run as Prefect tasks.

Each task runs one step in a process of its own and logs its lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import State, Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun

from csdn.params import load_params
from csdn.retraining import steps
from csdn.retraining.dvc import remotes
from csdn.retraining.workspace import overridden
from csdn.runtime.errors import UserError, is_unavailable
from csdn.runtime.process import reach_loopback_directly
from csdn.runtime.sanitize import has_credentials
from csdn.training.champion import read_champion
from flows.observability import ProgressBar, show_data, show_figures

PROJECT = Path(__file__).resolve().parents[1]
RETRY_DELAYS = [10, 60, 300]  # seconds; the stage itself has already retried for up to one minute


@dataclass(frozen=True)
class Settings:
    """environment: variables added to the worker's for the stages. remote: name of a DVC remote."""

    environment: Mapping[str, str]
    remote: str | None


def check_parameters(
    folder: Path, overrides: Mapping[str, Any], ray_address: str | None, remote: str | None
) -> Settings:
    """Validate a flow's parameters. Raises UserError naming what is wrong and what is allowed."""
    reach_loopback_directly()  # the webhook and the object store may be there as well
    load_params(folder / "params.yaml")
    scaling = overridden(overrides, (folder / "params.yaml").read_bytes()).scaling
    if remote is not None and remote not in (names := remotes(folder)):
        raise UserError(
            f"remote = {remote!r}: no DVC remote of {folder} is called that; there are: "
            f"{', '.join(names) or 'none'} (`dvc remote add NAME s3://bucket/prefix`)"
        )
    if not ray_address:
        return Settings({}, remote)
    if has_credentials(ray_address):
        raise UserError("ray_address: a key or password is in it, which Prefect would show")
    if not scaling.workers:
        raise UserError(
            f"ray_address = {ray_address}: nothing would use it, as scaling.workers is 0; "
            'add overrides, such as {"scaling.workers": 4}'
        )
    if scaling.address:
        raise UserError(
            f"ray_address = {ray_address}: scaling.address in params.yaml names {scaling.address}, which "
            "takes precedence; leave one of them empty"
        )
    return Settings({"RAY_ADDRESS": ray_address}, remote)


def service_was_unavailable(task: Task, task_run: TaskRun, state: State) -> bool:
    """Prefect's retry condition. A wrong parameter, bad data or a locked workspace would fail again."""
    return is_unavailable(state.data) if isinstance(state.data, BaseException) else False


RETRIED = {
    "cache_policy": NO_CACHE,
    "retries": len(RETRY_DELAYS),
    "retry_delay_seconds": RETRY_DELAYS,
    "retry_condition_fn": service_was_unavailable,
}


@task(task_run_name="pull from {remote}", **RETRIED)
def pull(folder: Path, remote: str) -> None:
    """Pull from a DVC remote what the folder lacks."""
    steps.pull(folder, remote, get_run_logger().info)


@task(task_run_name="push to {remote}", **RETRIED)
def push(folder: Path, remote: str) -> None:
    """Push to a DVC remote what it lacks."""
    steps.push(folder, remote, get_run_logger().info)


@task(task_run_name="{stage}{of_run}", **RETRIED)
def run_stage(
    stage: str, folder: Path, environment: Mapping[str, str] | None = None, of_run: str = ""
) -> None:
    """Bring one stage up to date."""
    bar = ProgressBar(stage)
    steps.repro(stage, folder, get_run_logger().info, environment, bar.show)
    bar.end()


def run_ingest(folder: Path, environment: Mapping[str, str], of_run: str = "") -> None:
    """Run the first stage and show what it ingested; of_run: the end of its task's name."""
    run_stage(steps.STAGES[0], folder, environment, of_run)
    show_data(folder)


def run_remaining_stages(folder: Path, environment: Mapping[str, str], of_run: str = "") -> None:
    """Run the four stages after ingest and show their figures beside the champion's."""
    for stage in steps.STAGES[1:]:
        run_stage(stage, folder, environment, of_run)
    show_figures(folder, read_champion(folder).champion)
