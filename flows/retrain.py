"""csdn-retrain/retrain: look for new camera data, and what follows; started by the clock and by events.

A run that finds the workspace busy leaves word there, and ends: who works there looks again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger, runtime, task
from prefect.client.orchestration import get_client
from prefect.states import Completed

from csdn.retraining import run as run_steps
from csdn.retraining import steps
from csdn.retraining.lock import WorkspaceLocked, when_asked
from csdn.retraining.notify import Notification
from csdn.retraining.run import Outcome, Scan
from csdn.retraining.workspace import Run
from csdn.runtime.errors import Diverged
from flows.artifacts import show_gate
from flows.notify import tell, tell_failure
from flows.settings import PROJECT, Settings, checked
from flows.stages import PATIENT, run_ingest, run_others


@task(task_run_name="look for camera data", **PATIENT)
def look(workspace: Path, overrides: dict[str, Any]) -> Scan:
    """What arrived, and whether it is enough; the drops' notes are this task's log."""
    found = run_steps.scan(workspace, overrides)
    for line in (*found.notes, found.why):
        get_run_logger().info(line)
    return found


@task(task_run_name="gate", **PATIENT)
def gate(run: Run, environment: dict[str, str]) -> None:
    """Compare the newcomer with the champion."""
    steps.gate(run.folder, get_run_logger().info, environment)


@task(task_run_name="carry out the decision", **PATIENT)
def conclude(run: Run) -> Outcome:
    """Main moves to the run, or the drops that came with it are held."""
    outcome = run_steps.apply_decision(run)
    for line in outcome.reasons:
        get_run_logger().info(line)
    return outcome


@flow(name="csdn-retrain", flow_run_name="retrain", on_failure=[tell_failure], on_crashed=[tell_failure])
def retrain(
    workspace: str | None = None, overrides: dict[str, Any] | None = None, ray_address: str | None = None
) -> State:
    """Look for new camera data; if there is enough, train on it, and promote what the gate lets pass.

    workspace: a clone of the project; by default this one.
    overrides: values of params.yaml for this run alone; not those that say who is tested, and by which rule.
    ray_address: of a cluster, for scaling.workers of 1 and more.
    """
    folder = Path(workspace or PROJECT).resolve()
    settings = checked(folder, overrides or {}, ray_address, None)
    ends: list[State] = []
    try:
        when_asked(
            folder, "csdn-retrain", lambda: ends.append(retrain_once(folder, overrides or {}, settings))
        )
    except WorkspaceLocked as busy:
        return Completed(name="Busy", message=f"{busy}. A retraining there looks again before it ends.")
    return ends[-1]


def retrain_once(workspace: Path, overrides: dict[str, Any], settings: Settings) -> State:
    """One look, and all that follows from it; the state says what it came to."""
    found = look(workspace, overrides)
    rename(found.title)
    if found.run is None:
        return Completed(name="Nothing to do", message=found.why)
    outcome = carry_out(found.run, settings)
    tell(Notification(outcome.event, found.title, outcome.version, outcome.reasons), runtime.flow_run.id)
    run_steps.prune_worktrees(workspace)
    champion = (f"{outcome.version} is champion",) if outcome.version else ()
    return Completed(name=outcome.event.capitalize(), message="; ".join([*champion, *outcome.reasons]))


def carry_out(run: Run, settings: Settings) -> Outcome:
    """The five stages, the gate, and its decision; a training that diverged is refused, and does not fail."""
    run_ingest(run.folder, settings.environment)
    if not run_steps.nothing_usable(run):
        try:
            run_others(run.folder, settings.environment)
            gate(run, dict(settings.environment))
        except Diverged as error:
            run_steps.refuse_diverged(run, error)
        show_gate(run.folder)
    return conclude(run)


def rename(title: str) -> None:
    """Give this flow run a name that says what it is: that shows only once it has looked."""
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(runtime.flow_run.id, name=title)
    except Exception as error:  # a name is no reason to fail
        get_run_logger().warning("the run could not be named %s: %s", title, error)
