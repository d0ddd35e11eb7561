"""`make prefect-demo`: start a Prefect server and a worker on loopback, deploy the flows, run one of them.

Everything that it starts ends with it. The server's data and logs are in a temporary folder, which is kept
only if a start has failed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any

from csdn.runtime.errors import UserError
from csdn.runtime.process import reach_loopback_directly, with_parent

PROJECT = Path(__file__).resolve().parents[1]
POOL = "csdn-local"  # as in prefect.yaml
NOT_STARTED = ("SCHEDULED", "PENDING")  # types of a flow run's state
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
START_SECONDS = 60.0  # timeout of the server's first start
MESSAGE_SECONDS = 10.0  # between two messages while waiting
LAST_LINES = 15  # of a log, shown in an error
RETRY_DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds


def main() -> int:
    """Run the demo; returns 0 if the flow run succeeded."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _stop)
    home = Path(tempfile.mkdtemp(prefix="csdn-prefect-"))
    try:
        code = _run(LocalServer(home))
    except ServerFailed as error:
        print(f"error: {error}", file=sys.stderr)  # it names a log in `home`
        return 1
    except SystemExit:
        shutil.rmtree(home)
        raise
    shutil.rmtree(home)
    return code


def _stop(number: int, _: FrameType | None) -> None:
    """Signal handler: leave the block of `LocalServer.running`, which ends all processes."""
    _ignore_stop_signals()
    sys.exit(128 + number)


def _ignore_stop_signals() -> None:
    """A second signal while processes are being ended would leave some of them running."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _run(server: LocalServer) -> int:
    print(f"A Prefect server starts at {server.address}, its log: {server.log_of('server')}", flush=True)
    with server.running(PROJECT, POOL):
        try:
            # The nightly schedule would start a retraining during the demo.
            server.run(PROJECT, "deployment", "schedule", "pause", "--all")
            server.start("worker", "start", "--pool", POOL)
            return _run_pipeline(server)
        finally:
            _ignore_stop_signals()


def _run_pipeline(server: LocalServer) -> int:
    deployment = server.request("deployments/name/csdn/full-pipeline")["id"]
    scheduled = {"state": {"type": "SCHEDULED"}}
    flow_run = server.request(f"deployments/{deployment}/create_flow_run", scheduled)["id"]
    print(f"The run's page: {server.address}/runs/flow-run/{flow_run}", flush=True)
    state = _watch(server, flow_run)
    print(f"The run: {state['name']} {state['message'] or ''}".rstrip(), flush=True)
    if sys.stdin.isatty():
        input("The page stays until you press Enter, or Ctrl-C. ")
    return 0 if state["type"] == "COMPLETED" else 1


def _watch(server: LocalServer, flow_run: str) -> dict[str, Any]:
    """Wait until the flow run has ended, print each of its tasks as it ends; returns the last state."""
    printed: set[str] = set()
    last_message = time.monotonic()
    while True:
        server.check_alive()
        state = server.request(f"flow_runs/{flow_run}")["state"]
        for task in server.task_runs(flow_run):
            reached = task["state"]  # None while Prefect creates the task run
            if task["id"] not in printed and reached and reached["type"] in ENDED:
                printed.add(task["id"])
                print(f"  {task['name']}: {reached['name']}, {task['total_run_time']:.1f} s", flush=True)
        if state["type"] in ENDED:
            return state
        if state["type"] in NOT_STARTED and time.monotonic() - last_message >= MESSAGE_SECONDS:
            last_message = time.monotonic()
            print(f"The worker has not begun the run ({state['name']}); its log: {server.log_of('worker')}")
        time.sleep(1)


class ServerFailed(UserError):
    """The server or the worker did not start, or has ended; the message names its log."""


class LocalServer:
    """A Prefect server on a free port of loopback, its commands and its API; `home` has its data and logs."""

    start_seconds = START_SECONDS

    def __init__(self, home: Path) -> None:
        reach_loopback_directly()
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
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
    def running(self, project: Path, pool: str, deployments: str = "prefect.yaml") -> Iterator[None]:
        """The server with the deployments of `project`; at the end of the block all processes are ended.

        deployments: the file of `project` that defines them.
        """
        try:
            self.start("server", "start", "--host", "127.0.0.1", "--port", str(self.port))
            self._wait_until_healthy()
            self.run(project, "work-pool", "create", pool, "--type", "process")
            self.run(project, "deploy", "--all", "--prefect-file", deployments)
            yield
        finally:
            for process in reversed(self._started.values()):
                _end(process)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a `prefect` command in the background; its output goes to `log_of` its first argument."""
        name = arguments[0]
        with self.log_of(name).open("wb") as log:
            options = {"env": self.environment, "stdout": log, "stderr": subprocess.STDOUT}
            self._started[name] = subprocess.Popen(
                with_parent("prefect", *arguments), cwd=self.home, start_new_session=True, **options
            )
        return self._started[name]

    def log_of(self, name: str) -> Path:
        return self.home / f"{name}.log"

    def check_alive(self) -> None:
        """Raises ServerFailed if a background process has ended."""
        for name, process in self._started.items():
            if process.poll() is not None:
                raise self._failed(f"Prefect's {name} has ended ({process.returncode})", name)

    def run(self, folder: Path, *arguments: str) -> str:
        """Run a `prefect` command in `folder`; returns its output. Raises ServerFailed with it on failure."""
        command = ["prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=folder, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise ServerFailed(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def request(self, path: str, body: Any = None) -> Any:
        """POST to the API (GET without a body); returns its response.

        If the server responds with 503, as it does while its database is busy, the request is retried, as
        Prefect's own client does.
        """
        request = urllib.request.Request(
            f"{self.address}/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        for delay in (*RETRY_DELAYS, None):
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE or delay is None:
                    raise
                time.sleep(delay)

    def task_runs(self, flow_run: str) -> list[dict[str, Any]]:
        """The task runs of a flow run in the order in which they started."""
        tasks = self.request("task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [flow_run]}}})
        return sorted(tasks, key=lambda task: task["start_time"] or "")

    def _wait_until_healthy(self) -> None:
        began = last_message = time.monotonic()
        while (now := time.monotonic()) - began < self.start_seconds:
            self.check_alive()
            with suppress(OSError):  # it does not listen yet
                if self.request("health") is True:
                    return
            if now - last_message >= MESSAGE_SECONDS:
                last_message = now
                print(f"Waiting for the server, {now - began:.0f} s ...", flush=True)
            time.sleep(0.2)
        raise self._failed(f"Prefect's server did not respond within {self.start_seconds:.0f} s", "server")

    def _failed(self, what: str, name: str) -> ServerFailed:
        log = self.log_of(name)
        last = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return ServerFailed("\n".join([f"{what}; its log is {log}, which ends with:", *last]))


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, a second time if the worker ignores the first, then SIGKILL to all that its session has left.

    A process that it had just started would otherwise create its files again after they were deleted.
    """
    for _ in range(2):
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
            break
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
