"""What a person sees of a run: progress bars and artifacts on its page in Prefect, and webhook notifications.

No run fails because something could not be shown or sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow, State, get_run_logger
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.logging import get_logger
from prefect.utilities.urls import url_for

from csdn.params import load_params
from csdn.report.page import published_at
from csdn.retraining.notify import Notification, cmc_pictures, data_page, gate_page, headline_page, notify
from csdn.runtime.console import Event, text_line
from csdn.runtime.sanitize import as_markdown
from csdn.training.champion import Champion

WEBHOOK_BLOCK = "csdn-webhook"  # the Secret block with the webhook's address


class ProgressBar:
    """The progress of a stage as a bar on the page of its run.

    The bar is created at the first event with progress, so stages that end at once have none.
    """

    def __init__(self, stage: str) -> None:
        self.stage, self.bar = stage, None

    def show(self, event: Event) -> None:
        """Show an event of the stage, if it says how far a phase is."""
        if event.get("total") and (line := text_line(event)):
            self._show(100 * event["done"] / event["total"], line)

    def end(self) -> None:
        """Fill the bar: the stage has succeeded."""
        if self.bar is not None:
            self._show(100.0, f"{self.stage}: done")

    def _show(self, percent: float, line: str) -> None:
        with _warn_on_failure("progress"):
            if self.bar is None:
                self.bar = create_progress_artifact(percent, key=f"progress-{self.stage}", description=line)
            else:
                update_progress_artifact(self.bar, percent, description=line)


def show_data(folder: Path) -> None:
    """The summary of ingest, shown as soon as ingest has ended."""
    with _warn_on_failure("the data"):
        text = data_page(_read(folder / "metrics/ingest.json"))
        create_markdown_artifact(text, key="data", description="What was ingested")


def show_figures(folder: Path, champion: Champion | None) -> None:
    """The figures with their differences to the champion's, the CMC curves, and a link to the report."""
    with _warn_on_failure("the figures"):
        figures = headline_page(_read(folder / "metrics/headline.json"), champion)
        # The curves are embedded here: below an image artifact Prefect prints its address, which is a data:
        # URI.
        pictures = cmc_pictures(folder / "report/figures")
        create_markdown_artifact(f"{figures}\n\n{pictures}", key="figures", description="On the test people")
    with _warn_on_failure("the report"):
        page = (folder / "report/index.html").absolute()
        store = load_params(folder / "params.yaml").report.store
        address = published_at(page, store) if store else page.as_uri()
        create_link_artifact(address, key="report", link_text=address, description="The whole report")


def show_drift(lines: Sequence[str]) -> None:
    """What has changed in the images of new drops, camera by camera."""
    with _warn_on_failure("the drift"):
        text = "\n".join(f"* {as_markdown(line)}" for line in lines)
        create_markdown_artifact(text, key="drift", description="New drops against the champion's images")


def show_gate(folder: Path) -> None:
    """The gate's decision and its reasons."""
    with _warn_on_failure("the gate's decision"):
        text = gate_page(_read(folder / "metrics/gate.json"))
        create_markdown_artifact(text, key="gate", description="The gate's decision")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def _warn_on_failure(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        get_run_logger().warning("%s could not be shown: %s", what, error)


def send(notification: Notification, flow_run: UUID | str) -> None:
    """Send a notification with a link to the flow run's page; a failure is logged as a warning.

    The webhook's address comes from the Secret block csdn-webhook, or else from CSDN_WEBHOOK.
    """
    link = url_for("flow-run", obj_id=flow_run)
    problem = notify(replace(notification, link=link), _webhook_address())
    if problem:
        get_logger("flows.observability").warning(problem)


def send_failure(flow: Flow, flow_run: FlowRun, state: State) -> None:
    """Prefect's hook for a flow that failed or crashed: send a notification with the reason."""
    with get_client(sync_client=True) as client:
        name = client.read_flow_run(flow_run.id).name  # it may have been renamed since the run began
    send(Notification("failed", name, reasons=(state.message or state.name,)), flow_run.id)


def _webhook_address() -> str | None:
    try:
        return Secret.load(WEBHOOK_BLOCK, _sync=True).get()
    except Exception:  # the block does not exist, or the server does not respond
        return None
