"""A Prefect server with a work pool and a worker on loopback, in a home of its own; ended by process id."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import workspace

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
DEADLINE = 600.0  # seconds for whatever is waited for; a cold server takes a minute
POLL_SECONDS = 0.2


class Prefect:
    """The server's command line and API, as a person and a test use them, and its worker's process."""

    worker: subprocess.Popen[bytes]

    def __init__(self, home: Path, port: int) -> None:
        self.home = home
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            **workspace.environment(),
            "PREFECT_HOME": str(home),
            "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "DO_NOT_TRACK": "1",
        }

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a `prefect` command that stays; its output is <home>/<first argument>.log."""
        with (self.home / f"{arguments[0]}.log").open("wb") as log:
            return subprocess.Popen(
                ["prefect", *arguments],
                cwd=self.home,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(self, folder: Path, *arguments: str) -> str:
        """Run a `prefect` command in `folder`; returns what it printed."""
        done = subprocess.run(
            ["prefect", "--no-prompt", *arguments],
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def api(self, path: str, **body: Any) -> Any:
        """POST to the API (GET without a body); returns its answer."""
        request = urllib.request.Request(
            f"{self.url}/api/{path}",
            data=json.dumps(body).encode() if body else None,
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def healthy(self) -> bool:
        try:
            return self.api("health") is True
        except OSError:
            return False

    def flow_run(self, identifier: str) -> dict[str, Any]:
        return self.api(f"flow_runs/{identifier}")

    def task_runs(self, flow_run: str) -> list[dict[str, Any]]:
        """The task runs of a flow run in the order in which they started."""
        runs = self.api("task_runs/filter", task_runs={"flow_run_id": {"any_": [flow_run]}})
        return sorted(runs, key=lambda run: run["start_time"])

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

    def end_of(self, flow_run: str) -> dict[str, Any]:
        """A flow run's last state, as soon as it has come to it."""
        wait_until(lambda: self.flow_run(flow_run)["state"]["type"] in ENDED, "the flow run's end")
        return self.flow_run(flow_run)["state"]

    def log(self, task_run: str) -> str:
        """What a task run logged."""
        lines = self.api("logs/filter", logs={"task_run_id": {"any_": [task_run]}}, sort="TIMESTAMP_ASC")
        return "\n".join(line["message"] for line in lines)


def wait_until(condition: Any, what: str, seconds: float = DEADLINE) -> None:
    """Ask until it holds; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(POLL_SECONDS)


@contextmanager
def prefect_with_worker(home: Path, project: Path, pool: str, **environment: str) -> Iterator[Prefect]:
    """A server with the deployments of `project` and a worker for their pool, which has `environment`."""
    prefect = Prefect(home, _free_port())
    prefect.environment |= environment
    server = prefect.start("server", "start", "--host", "127.0.0.1", "--port", prefect.url.split(":")[-1])
    try:
        wait_until(prefect.healthy, "the server")
        prefect.run(project, "work-pool", "create", pool, "--type", "process")
        prefect.run(project, "deploy", "--all")
        prefect.worker = prefect.start("worker", "start", "--pool", pool)
        yield prefect
    finally:
        for process in (getattr(prefect, "worker", None), server):
            if process:
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM; a worker may need it twice, and is killed if that is not enough."""
    for stop in (process.terminate, process.terminate, process.kill):
        stop()
        try:
            process.wait(10)
            return
        except subprocess.TimeoutExpired:
            continue


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
