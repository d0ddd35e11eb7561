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

from csdn.retraining.steps import GUARD
from csdn.runtime.errors import UserError
from csdn.runtime.process import reach_loopback_directly

START_SECONDS = 60.0  # for a server that starts for the first time
WORD_SECONDS = 10.0  # between two lines that say what is waited for
LAST_LINES = 15  # of a log, shown in an error
BUSY_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between two tries
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class ServerFailed(UserError):
    """The server or what runs beside it did not start, or has ended; the message names its log."""


class LocalServer:
    """The server's commands and API; `home` keeps its data and logs."""

    start_seconds = START_SECONDS

    def __init__(self, home: Path) -> None:
        reach_loopback_directly()
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
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    @contextmanager
    def running(self, project: Path, pool: str) -> Iterator[None]:
        """The server with the deployments of `project`; it ends with the block, and all that was started."""
        try:
            self.start("server", "start", "--host", "127.0.0.1", "--port", str(self.port))
            self._wait()
            self.run(project, "work-pool", "create", pool, "--type", "process")
            self.run(project, "deploy", "--all")
            yield
        finally:
            for process in reversed(self._started.values()):
                _end(process)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a `prefect` command that stays; its output is in `log_of` its first argument."""
        name = arguments[0]
        with self.log_of(name).open("wb") as log:
            options = {"env": self.environment, "stdout": log, "stderr": subprocess.STDOUT}
            command = [sys.executable, "-P", str(GUARD), "prefect", *arguments]  # it dies with this process
            self._started[name] = subprocess.Popen(command, cwd=self.home, **options)
        return self._started[name]

    def log_of(self, name: str) -> Path:
        return self.home / f"{name}.log"

    def check_alive(self) -> None:
        """Raises ServerFailed where something that was started to stay has ended."""
        for name, process in self._started.items():
            if process.poll() is not None:
                raise self._failed(f"Prefect's {name} has ended ({process.returncode})", name)

    def run(self, folder: Path, *arguments: str) -> str:
        """What a `prefect` command prints in `folder`. Raises ServerFailed with it where it fails."""
        command = ["prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=folder, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise ServerFailed(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
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

    def _wait(self) -> None:
        began = told = time.monotonic()
        while (now := time.monotonic()) - began < self.start_seconds:
            self.check_alive()
            with suppress(OSError):  # it does not listen yet
                if self.ask("health") is True:
                    return
            if now - told >= WORD_SECONDS:
                told = now
                print(f"Waiting for it to answer, {now - began:.0f} s ...", flush=True)
            time.sleep(0.2)
        raise self._failed(f"Prefect's server did not answer within {self.start_seconds:.0f} s", "server")

    def _failed(self, what: str, name: str) -> ServerFailed:
        log = self.log_of(name)
        last = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return ServerFailed("\n".join([f"{what}; its log is {log}, which ends with:", *last]))


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
