"""csdn-retrain/retrain: scan for new camera data, retrain and decide; started by a schedule and by events.

If the workspace is locked, the run requests another scan and ends; a retraining that holds the lock scans
again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger, runtime, task
from prefect.client.orchestration import get_client
from prefect.states import Completed

from csdn.ingest.ledger import Drop
from csdn.retraining import run as retraining
from csdn.retraining import steps
from csdn.retraining.lock import WorkspaceLocked, scan_on_request
from csdn.retraining.notify import Notification
from csdn.retraining.registry import Outcome
from csdn.retraining.scan import Scan
from csdn.retraining.scan import scan as scan_data
from csdn.retraining.workspace import Run
from flows.observability import send, send_failure, show_drift, show_gate
from flows.tasks import PROJECT, RETRIED, Settings, check_parameters, run_ingest, run_remaining_stages


@flow(name="csdn-retrain", flow_run_name="retrain", on_failure=[send_failure], on_crashed=[send_failure])
def retrain(
    workspace: str | None = None, overrides: dict[str, Any] | None = None, ray_address: str | None = None
) -> State:
    """Scan for new camera data; if there is enough, train on it, and promote the model if the gate allows.

    workspace: a clone of the project; by default this one.
    overrides: values of params.yaml for this run alone; those that decide who is tested, and by which rule,
    are not allowed.
    ray_address: of a cluster, for scaling.workers of 1 and more.
    """
    folder = Path(workspace or PROJECT).resolve()
    settings = check_parameters(folder, overrides or {}, ray_address, None)
    states: list[State] = []
    try:
        scan_on_request(
            folder, "csdn-retrain", lambda: states.append(retrain_once(folder, overrides or {}, settings))
        )
    except WorkspaceLocked as locked:
        return Completed(name="Busy", message=f"{locked}. A retraining there scans again before it ends.")
    return states[-1]


def retrain_once(workspace: Path, overrides: dict[str, Any], settings: Settings) -> State:
    """One scan and the run that may follow; the state says what came of it."""
    found, outcome = retraining.retrain(workspace, overrides, Tasks(settings.environment))
    if outcome is None:
        return Completed(name="Nothing to do", message=found.reason)
    return Completed(name=outcome.event.capitalize(), message="; ".join(outcome.lines))


class Tasks(retraining.Steps):
    """The steps of a retraining as tasks, shown on the page of the flow run.

    The tasks of a trial have its id in their names.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)  # added to the worker's for the stages
        self.of_run = ""  # of the present trial, as in " of 20261121-0a1b2c3d"

    def scan(self, workspace: Path, overrides: Mapping[str, Any], force: bool) -> Scan:
        found = scan(workspace, overrides, force)
        rename(found.title)
        return found

    def ingest(self, folder: Path) -> None:
        run_ingest(folder, self.environment, self.of_run)

    def train(self, folder: Path) -> None:
        run_remaining_stages(folder, self.environment, self.of_run)

    def gate(self, folder: Path) -> None:
        gate(folder, self.environment, self.of_run)

    def trial(self, run: Run, left_out: Sequence[Drop]) -> Run:
        begun = trial(run, left_out)
        self.of_run = f" of {begun.id}"
        return begun

    def apply_decision(self, run: Run, cleared: Sequence[Drop] = (), notes: Sequence[str] = ()) -> Outcome:
        show_gate(run.folder)
        return apply_decision(run, cleared, notes)

    def notify(self, notification: Notification) -> None:
        send(notification, runtime.flow_run.id)


@task(task_run_name="scan for camera data", **RETRIED)
def scan(workspace: Path, overrides: Mapping[str, Any], force: bool) -> Scan:
    """Find out what arrived, and whether it is enough; log the notes about single drops."""
    found = scan_data(workspace, overrides, force)
    for line in (*found.notes, *found.drift, found.reason):
        get_run_logger().info(line)
    if found.drift:
        show_drift(found.drift)
    return found


@task(task_run_name="gate{of_run}", **RETRIED)
def gate(folder: Path, environment: dict[str, str], of_run: str = "") -> None:
    """Compare the candidate with the champion."""
    steps.gate(folder, get_run_logger().info, environment)


@task(task_run_name="repeat the run without some drops", **RETRIED)
def trial(run: Run, left_out: Sequence[Drop]) -> Run:
    """Begin a trial: the rejected run again, with these drops held."""
    begun = retraining.trial(run, left_out)
    for line in (f"run {begun.id}, without:", *map(str, left_out)):
        get_run_logger().info(line)
    return begun


@task(task_run_name="apply the decision", **RETRIED)
def apply_decision(run: Run, cleared: Sequence[Drop], notes: Sequence[str]) -> Outcome:
    """Move main to the run, or hold or accept the drops that came with it."""
    outcome = retraining.apply_decision(run, cleared, notes)
    for line in outcome.reasons:
        get_run_logger().info(line)
    return outcome


def rename(title: str) -> None:
    """Rename this flow run after what the scan found; a failure is logged as a warning."""
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(runtime.flow_run.id, name=title)
    except Exception as error:
        get_run_logger().warning("the run could not be renamed to %s: %s", title, error)
