"""csdn/full-pipeline: the stages of dvc.yaml, each a task around `dvc repro` of that stage alone.

DVC decides which stages have work to do; the task of a stage that is up to date takes a few seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run

from csdn.params import leaves
from csdn.retraining.branches import MEASURE
from csdn.retraining.lock import scan_requested, workspace_lock
from csdn.retraining.workspace import begin
from flows.observability import send_failure
from flows.tasks import PROJECT, Settings, check_parameters, pull, push, run_ingest, run_remaining_stages

RETRAIN = "csdn-retrain/retrain"  # the deployment of flows/retrain.py


def run_name() -> str:
    """The flow run's name in Prefect's lists, with the overrides."""
    values = _as_text(flow_run.parameters.get("overrides") or {})
    return f"full pipeline: {values}" if values else "full pipeline"


@flow(name="csdn", flow_run_name=run_name, on_failure=[send_failure], on_crashed=[send_failure])
def pipeline(
    workspace: str | None = None,
    overrides: dict[str, Any] | None = None,
    ray_address: str | None = None,
    remote: str | None = None,
) -> None:
    """Bring the whole pipeline up to date.

    workspace: a clone of the project; by default this one.
    overrides: values of params.yaml for this run alone, as {"embedding.epochs": 6}; the run then works in a
    folder and on a branch of its own.
    ray_address: of a cluster, for scaling.workers of 1 and more.
    remote: a DVC remote; missing files are pulled from it first, and everything is pushed to it at the end.
    Nothing starts with a wrong parameter, nor while something else works in the workspace.
    """
    folder = Path(workspace or PROJECT).resolve()
    settings = check_parameters(folder, overrides or {}, ray_address, remote)
    locked = False
    try:
        with workspace_lock(folder, run_name()):
            locked = True
            if not overrides:
                run_all(folder, settings)
            else:
                run = begin(folder, list, overrides)
                run_all(run.folder, settings)
                run.commit(f"full pipeline with {_as_text(overrides)}", MEASURE)
    finally:
        if locked and scan_requested(folder):  # a retraining found the workspace locked meanwhile
            start_retraining(folder)


def run_all(folder: Path, settings: Settings) -> None:
    """Run every stage in `folder`; the caller holds the workspace's lock."""
    if settings.remote:
        pull(folder, settings.remote)
    run_ingest(folder, settings.environment)
    run_remaining_stages(folder, settings.environment)
    if settings.remote:
        push(folder, settings.remote)


def start_retraining(workspace: Path) -> None:
    """Start csdn-retrain/retrain on a workspace, without waiting for it."""
    try:
        run_deployment(RETRAIN, parameters={"workspace": str(workspace)}, timeout=0, as_subflow=False)
    except (ObjectNotFound, ValueError):
        get_run_logger().warning("there is no deployment %s: `csdn retrain` scans for camera data", RETRAIN)


def _as_text(overrides: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in leaves(overrides))
