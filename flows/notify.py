"""The webhook's address from where Prefect keeps secrets, and a link to the run's page."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from prefect import Flow, State
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.logging import get_logger
from prefect.utilities.urls import url_for

from csdn.retraining.notify import Notification, notify

BLOCK = "csdn-webhook"


def tell(news: Notification, flow_run: UUID | str) -> None:
    """Send `news` to the address in the Secret block csdn-webhook, or in CSDN_WEBHOOK; it never fails."""
    link = url_for("flow-run", obj_id=flow_run)
    problem = notify(replace(news, link=link), _address())
    if problem:
        get_logger("flows.notify").warning(problem)


def tell_failure(flow: Flow, flow_run: FlowRun, state: State) -> None:
    """For a flow that failed or crashed; the run may have got another name since it began."""
    with get_client(sync_client=True) as client:
        name = client.read_flow_run(flow_run.id).name
    tell(Notification("failed", name, reasons=(state.message or state.name,)), flow_run.id)


def _address() -> str | None:
    try:
        return Secret.load(BLOCK, _sync=True).get()
    except Exception:  # there is no such block, or nobody to ask
        return None
