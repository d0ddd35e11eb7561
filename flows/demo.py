"""`make prefect-demo`: a Prefect server and a worker on loopback, the deployments, and one run to look at.

Everything it starts ends with it; the server's data is in a temporary folder.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from flows.local_server import ENDED, WORD_SECONDS, LocalServer, ServerFailed
from flows.settings import PROJECT

POOL = "csdn-local"  # as in prefect.yaml
WAITING = ("SCHEDULED", "PENDING")
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run the demo; 0 where the run succeeded."""
    for number in STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup has SIGHUP ignored
            signal.signal(number, _stop)
    home = Path(tempfile.mkdtemp(prefix="csdn-prefect-"))
    server = LocalServer(home)
    try:
        code = _run(server)
    except ServerFailed as error:
        print(f"error: {error}", file=sys.stderr)  # which names a log in `home`
        return 1
    except SystemExit:
        shutil.rmtree(home)
        raise
    shutil.rmtree(home)
    return code


def _stop(number: int, _: FrameType | None) -> None:
    """End the block of `LocalServer.running`."""
    _end_undisturbed()
    sys.exit(128 + number)


def _end_undisturbed() -> None:
    """From here on everything is being ended, and a signal would leave some of it."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def _run(server: LocalServer) -> int:
    print(f"A Prefect server starts at {server.address}, its log: {server.log_of('server')}", flush=True)
    with server.running(PROJECT, POOL):
        try:
            # The nightly look would retrain: not in a demonstration.
            server.run(PROJECT, "deployment", "schedule", "pause", "--all")
            server.start("worker", "start", "--pool", POOL)
            return _show(server)
        finally:
            _end_undisturbed()


def _show(server: LocalServer) -> int:
    deployment = server.ask("deployments/name/csdn/full-pipeline")["id"]
    wanted = {"state": {"type": "SCHEDULED"}}
    flow_run = server.ask(f"deployments/{deployment}/create_flow_run", wanted)["id"]
    print(f"The run's page: {server.address}/runs/flow-run/{flow_run}", flush=True)
    state = _watch(server, flow_run)
    print(f"The run: {state['name']} {state['message'] or ''}".rstrip(), flush=True)
    if sys.stdin.isatty():
        input("The page stays until you press Enter, or Ctrl-C. ")
    return 0 if state["type"] == "COMPLETED" else 1


def _watch(server: LocalServer, flow_run: str) -> dict[str, Any]:
    """The flow run's last state, each of its tasks printed as it ends."""
    shown: set[str] = set()
    told = time.monotonic()
    while True:
        server.check_alive()
        state = server.ask(f"flow_runs/{flow_run}")["state"]
        for task in server.task_runs(flow_run):
            reached = task["state"]  # None in the moment in which Prefect makes the task's run
            if task["id"] not in shown and reached and reached["type"] in ENDED:
                shown.add(task["id"])
                print(f"  {task['name']}: {reached['name']}, {task['total_run_time']:.1f} s", flush=True)
        if state["type"] in ENDED:
            return state
        if state["type"] in WAITING and time.monotonic() - told >= WORD_SECONDS:
            told = time.monotonic()
            print(f"The worker has not begun the run ({state['name']}); its log: {server.log_of('worker')}")
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
