"""A Prefect server on a free port of loopback, with what runs beside it; all of it ends by process id."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 600.0  # of a server that starts for the first time
BUSY_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between two tries
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class LocalServer:
    """The server's commands and API; `home` keeps its data and logs."""

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
        self._started: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def running(self, project: Path, pool: str) -> Iterator[None]:
        """The server with the deployments of `project`; it ends with the block, and all that was started."""
        try:
            self._wait(self.start("server", "start", "--host", "127.0.0.1", "--port", str(self.port)))
            self.run(project, "work-pool", "create", pool, "--type", "process")
            self.run(project, "deploy", "--all")
            yield
        finally:
            for process in reversed(self._started):
                _end(process)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a `prefect` command that stays; its output is <home>/<first argument>.log."""
        with (self.home / f"{arguments[0]}.log").open("wb") as log:
            options = {"env": self.environment, "stdout": log, "stderr": subprocess.STDOUT}
            self._started.append(subprocess.Popen(["prefect", *arguments], cwd=self.home, **options))
        return self._started[-1]

    def run(self, folder: Path, *arguments: str) -> str:
        """What a `prefect` command prints in `folder`. Raises RuntimeError with it where it fails."""
        command = ["prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=folder, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def ask(self, path: str, body: Any = None) -> Any:
        """POST to the API (GET without a body); returns its answer.

        A server whose database is busy says 503, and is asked again, as Prefect's own client does.
        """
        request = urllib.request.Request(
            f"{self.address}/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        for pause in (*BUSY_PAUSES, None):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE or pause is None:
                    raise
                time.sleep(pause)

    def task_runs(self, flow_run: str) -> list[dict[str, Any]]:
        """The task runs of a flow run in the order in which they started."""
        tasks = self.ask("task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [flow_run]}}})
        return sorted(tasks, key=lambda task: task["start_time"] or "")

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while process.poll() is None and time.monotonic() < end:
            with suppress(OSError):  # it does not listen yet
                if self.ask("health") is True:
                    return
            time.sleep(0.2)
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
