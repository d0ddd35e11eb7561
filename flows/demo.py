"""`make prefect-demo`: a Prefect server and a worker on loopback, the deployments, and one run to look at.

Everything it starts ends with it; the server's data is in a temporary folder.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from flows.local_server import ENDED, LocalServer
from flows.settings import PROJECT

POOL = "csdn-local"  # as in prefect.yaml


def main() -> int:
    """Run the demo; 0 where the run succeeded."""
    with tempfile.TemporaryDirectory(prefix="csdn-prefect-") as home:
        server = LocalServer(Path(home))
        print("A Prefect server starts on loopback ...", flush=True)
        try:
            with server.running(PROJECT, POOL):
                # The nightly look would retrain: not in a demonstration.
                server.run(PROJECT, "deployment", "schedule", "pause", "--all")
                server.start("worker", "start", "--pool", POOL)
                return _show(server)
        except KeyboardInterrupt:
            return 130


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
    while True:
        state = server.ask(f"flow_runs/{flow_run}")["state"]
        for task in server.task_runs(flow_run):
            if task["id"] not in shown and task["state"]["type"] in ENDED:
                shown.add(task["id"])
                seconds = task["total_run_time"]
                print(f"  {task['name']}: {task['state']['name']}, {seconds:.1f} s", flush=True)
        if state["type"] in ENDED:
            return state
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
