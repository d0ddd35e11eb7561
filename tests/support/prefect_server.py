"""A Prefect server with a work pool and a worker on loopback, as tests use it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.demo import ENDED, LocalServer

# Between two polls, whose responses take cores from what is waited for.
PATIENCE_SECONDS = 600.0  # a machine that runs tests has much else to do
POLL_SECONDS, LONGEST_POLL_SECONDS = 0.2, 2.0
# How soon a queued run checks whether the one before it has ended; by default 30 s.
SLOT_WAIT = "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS"


class Prefect(LocalServer):
    """The server as a person and a test use it, and its worker's process."""

    worker: subprocess.Popen[bytes]
    start_seconds = PATIENCE_SECONDS

    def api(self, path: str, **body: Any) -> Any:
        """POST to the API (GET without a body); returns its answer."""
        return self.request(path, body or None)

    def flow_run(self, identifier: str) -> dict[str, Any]:
        return self.api(f"flow_runs/{identifier}")

    def deployments(self) -> dict[str, str]:
        """Deployment's name -> its id."""
        return {found["name"]: found["id"] for found in self.api("deployments/filter", sort="NAME_ASC")}

    def runs_of(self, deployment: str) -> list[dict[str, Any]]:
        """The flow runs of a deployment, in the order of their expected starts."""
        wanted = {"name": {"any_": [deployment]}}
        return self.api("flow_runs/filter", deployments=wanted, sort="EXPECTED_START_TIME_ASC")

    def artifacts(self, flow_run: str) -> dict[str, Any]:
        """Key -> data of the artifacts of a flow run."""
        found = self.api("artifacts/filter", artifacts={"flow_run_id": {"any_": [flow_run]}})
        return {one["key"]: one["data"] for one in found}

    def deployment_run(self, folder: Path, deployment: str, **parameters: Any) -> str:
        """Start a deployment as a person would; returns the flow run's id."""
        given = [
            part for key, value in parameters.items() for part in ("--param", f"{key}={json.dumps(value)}")
        ]
        output = self.run(folder, "deployment", "run", f"csdn/{deployment}", *given)
        return re.search(r"UUID: ([0-9a-f-]{36})", output)[1]

    def begin(self, deployment: str, **parameters: Any) -> str:
        """Start a deployment through the API, without the command's seconds; returns the flow run's id."""
        started = self.api(
            f"deployments/{self.deployments()[deployment]}/create_flow_run", parameters=parameters
        )
        return started["id"]

    def end_of(self, flow_run: str) -> dict[str, Any]:
        """A flow run's last state, as soon as it has come to it."""
        wait_until(lambda: self.flow_run(flow_run)["state"]["type"] in ENDED, "the flow run's end")
        return self.flow_run(flow_run)["state"]

    def log(self, task_run: str) -> str:
        """What a task run logged."""
        lines = self.api("logs/filter", logs={"task_run_id": {"any_": [task_run]}}, sort="TIMESTAMP_ASC")
        return "\n".join(line["message"] for line in lines)


def wait_until(condition: Any, what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Poll until the condition holds; fails after `seconds`."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < seconds, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(min(max(POLL_SECONDS, waited / 10), LONGEST_POLL_SECONDS))


@contextmanager
def prefect_with_worker(home: Path, project: Path, pool: str, **environment: str) -> Iterator[Prefect]:
    """A server with the deployments of `project` and a worker for their pool, which has `environment`."""
    prefect = Prefect(home)
    prefect.environment |= {"DVC_NO_ANALYTICS": "1", SLOT_WAIT: "3"} | environment
    with prefect.running(project, pool):
        prefect.worker = prefect.start("worker", "start", "--pool", pool)
        yield prefect
