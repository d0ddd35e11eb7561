"""A Prefect server with a work pool and a worker on loopback, in a home of its own; ended by process id."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import workspace

DEADLINE = 600.0  # seconds for whatever is waited for; a cold server takes a minute
POLL_SECONDS = 0.2


class Prefect:
    """The server's command line and API, as a person and a test use them."""

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

    def log(self, task_run: str) -> str:
        """What a task run logged."""
        lines = self.api("logs/filter", logs={"task_run_id": {"any_": [task_run]}}, sort="TIMESTAMP_ASC")
        return "\n".join(line["message"] for line in lines)


def wait_until(condition: Any, what: str) -> None:
    """Ask until it holds; fails after DEADLINE."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE:.0f} s in vain for {what}"
        time.sleep(POLL_SECONDS)


@contextmanager
def prefect_with_worker(home: Path, project: Path, pool: str) -> Iterator[Prefect]:
    """A server with the deployments of `project` and a worker for their pool."""
    prefect = Prefect(home, _free_port())
    started = [prefect.start("server", "start", "--host", "127.0.0.1", "--port", prefect.url.split(":")[-1])]
    try:
        wait_until(prefect.healthy, "the server")
        prefect.run(project, "work-pool", "create", pool, "--type", "process")
        prefect.run(project, "deploy", "--all")
        started.append(prefect.start("worker", "start", "--pool", pool))
        yield prefect
    finally:
        for process in reversed(started):
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
