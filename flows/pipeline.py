"""csdn/full-pipeline: the stages of dvc.yaml, each a task around `dvc repro` of that stage alone.

Which stages have work to do is DVC's decision: one that is up to date is a task of a few seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from csdn.params import leaves
from csdn.retraining.branches import MEASURE
from csdn.retraining.lock import asked, workspace_lock
from csdn.retraining.workspace import begin
from flows.looks import look_now
from flows.notify import tell_failure
from flows.settings import PROJECT, Settings, checked
from flows.stages import pull, push, run_ingest, run_others


def run_name() -> str:
    """What the run is, for lists of runs."""
    values = _shown(flow_run.parameters.get("overrides") or {})
    return f"full pipeline: {values}" if values else "full pipeline"


@flow(name="csdn", flow_run_name=run_name, on_failure=[tell_failure], on_crashed=[tell_failure])
def pipeline(
    workspace: str | None = None,
    overrides: dict[str, Any] | None = None,
    ray_address: str | None = None,
    remote: str | None = None,
) -> None:
    """Bring the whole pipeline up to date.

    workspace: a clone of the project; by default this one.
    overrides: values of params.yaml for this run alone, as {"embedding.epochs": 6}; it then works in a folder
    and on a branch of its own.
    ray_address: of a cluster, for scaling.workers of 1 and more.
    remote: a DVC remote; what is missing here is pulled from it before, and everything is pushed to it after.
    Nothing starts with a wrong parameter, nor while something else works in the workspace.
    """
    folder = Path(workspace or PROJECT).resolve()
    settings = checked(folder, overrides or {}, ray_address, remote)
    held = False
    try:
        with workspace_lock(folder, run_name()):
            held = True
            if not overrides:
                run_all(folder, settings)
            else:
                run = begin(folder, list, overrides)
                run_all(run.folder, settings)
                run.commit(f"full pipeline with {_shown(overrides)}", MEASURE)
    finally:
        if held and asked(folder):  # new data was announced meanwhile
            look_now(folder)


def run_all(folder: Path, settings: Settings) -> None:
    """Every stage in `folder`, which the caller has locked."""
    if settings.remote:
        pull(folder, settings.remote)
    run_ingest(folder, settings.environment)
    run_others(folder, settings.environment)
    if settings.remote:
        push(folder, settings.remote)


def _shown(overrides: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in leaves(overrides))
