"""`make prefect-demo`: a Prefect server and a worker on loopback, the deployments, and one run to look at.

Everything it starts ends with it, by process id; its server's data is in a temporary folder.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.settings import PROJECT

POOL = "csdn-local"  # as in prefect.yaml
PATIENCE_SECONDS = 180.0  # of a server that starts for the first time
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def main() -> int:
    """Run the demo; 0 where the run succeeded."""
    with tempfile.TemporaryDirectory(prefix="csdn-prefect-") as home:
        server = Server(Path(home))
        try:
            with server.running():
                return _show(server)
        except KeyboardInterrupt:
            return 130


def _show(server: Server) -> int:
    identifier = server.start_run("csdn/full-pipeline")
    print(f"The run's page: {server.address}/runs/flow-run/{identifier}", flush=True)
    state = server.watch(identifier)
    print(f"The run: {state['name']} {state['message'] or ''}".rstrip(), flush=True)
    if sys.stdin.isatty():
        input("The page stays until you press Enter, or Ctrl-C. ")
    return 0 if state["type"] == "COMPLETED" else 1


class Server:
    """A server on a free port of loopback, with a worker; `home` keeps its data and logs."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, _free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PREFECT_HOME": str(home),
            "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
            "PREFECT_API_URL": f"{self.address}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "DO_NOT_TRACK": "1",
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        """The server with the deployments of prefect.yaml, and a worker; both end with the block."""
        started: list[subprocess.Popen[bytes]] = []
        try:
            print("A Prefect server starts on loopback ...", flush=True)
            started.append(self._start("server", "start", "--host", "127.0.0.1", "--port", str(self.port)))
            self._wait(started[0])
            self.prefect("work-pool", "create", POOL, "--type", "process")
            self.prefect("deploy", "--all")
            # The nightly look would retrain: not in a demonstration.
            self.prefect("deployment", "schedule", "pause", "--all")
            started.append(self._start("worker", "start", "--pool", POOL))
            yield
        finally:
            for process in reversed(started):
                _end(process)

    def prefect(self, *arguments: str) -> None:
        """Run a command of Prefect in the project. Raises RuntimeError with what it printed."""
        command = ["prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=PROJECT, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")

    def start_run(self, deployment: str) -> str:
        """The id of a new flow run of a deployment."""
        found = self.ask(f"deployments/name/{deployment}")
        return self.ask(f"deployments/{found['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})["id"]

    def watch(self, identifier: str) -> dict[str, Any]:
        """A flow run's last state, each of its tasks printed as it ends."""
        shown: set[str] = set()
        while True:
            state = self.ask(f"flow_runs/{identifier}")["state"]
            tasks = self.ask("task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [identifier]}}})
            for task in sorted(tasks, key=lambda task: task["start_time"] or ""):
                if task["id"] not in shown and task["state"]["type"] in ENDED:
                    shown.add(task["id"])
                    print(
                        f"  {task['name']}: {task['state']['name']}, {task['total_run_time']:.1f} s",
                        flush=True,
                    )
            if state["type"] in ENDED:
                return state
            time.sleep(1)

    def ask(self, path: str, body: Any = None) -> Any:
        """POST to the API (GET without a body); returns its answer."""
        request = urllib.request.Request(
            f"{self.address}/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.home / f"{arguments[0]}.log").open("wb") as log:
            options = {"env": self.environment, "stdout": log, "stderr": subprocess.STDOUT}
            return subprocess.Popen(["prefect", *arguments], cwd=PROJECT, **options)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while process.poll() is None and time.monotonic() < end:
            try:
                if self.ask("health") is True:
                    return
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(f"the Prefect server did not start:\n{(self.home / 'server.log').read_text()}")


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


if __name__ == "__main__":
    sys.exit(main())
