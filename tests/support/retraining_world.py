"""All that a retraining meets, on loopback: Prefect, an object store, a Git remote, a webhook, cameras."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect_server import ENDED, Prefect, prefect_with_worker, wait_until
from repository import git, make_repository
from s3_server import BUCKET, S3Server
from webhook import Webhook
from workspace import run

from csdn.ingest.ledger import Drop, parse_ledger, write_ledger
from csdn.training.champion import Champion, read_champion
from flows.pipeline import RETRAIN

LANDING, REMOTE = f"s3://{BUCKET}/landing", f"s3://{BUCKET}/dvc"
EVENT = "csdn.camera-data"


@dataclass(frozen=True)
class FlowRun:
    """A flow run that has ended: name and words of its last state, its artifacts by key, its tasks' names."""

    name: str
    state: str
    message: str
    shown: dict[str, Any]
    tasks: list[str]


@dataclass(frozen=True)
class World:
    """A project that retrains itself: its clone, what it reads and writes, and who starts it."""

    project: Path
    origin: Path
    store: S3Server
    prefect: Prefect
    webhook: Webhook

    def upload(self, name: str, write: Callable[[Path], object], folder: Path) -> None:
        """Put a drop into the landing place as cameras would, its marker last."""
        write(folder / name)
        files = [path for path in (folder / name).rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: (path.name == "_SUCCESS", path)):
            key = f"landing/{name}/{path.relative_to(folder / name)}"
            self.store.bucket.put_object(Key=key, Body=path.read_bytes())

    def announce(self) -> None:
        """The event that an object store's notification would send."""
        self.prefect.run(self.project, "event", "emit", EVENT, "--resource-id", "cameras")

    def planned(self) -> list[dict[str, Any]]:
        """Flow runs of the retraining that the server has planned by its schedule."""
        return [one for one in self.prefect.runs_of("retrain") if one["auto_scheduled"]]

    @contextmanager
    def scan_every(self, seconds: int) -> Iterator[None]:
        """The clock starts retrainings in the block, and none after it."""
        schedule = ("deployment", "schedule")
        self.prefect.run(self.project, *schedule, "create", RETRAIN, "--interval", str(seconds))
        yield
        self.prefect.run(self.project, *schedule, "clear", RETRAIN, "--accept-yes")

    def started(self) -> list[dict[str, Any]]:
        """Flow runs of the retraining that the clock has not planned for later."""
        return [one for one in self.prefect.runs_of("retrain") if one["state"]["type"] != "SCHEDULED"]

    def next_run(self, action: Callable[[], object] = lambda: None) -> FlowRun:
        """The retraining that an action starts, or the clock, when it has ended."""
        known = {one["id"] for one in self.started()}
        action()

        def fresh() -> list[dict[str, Any]]:
            return [one for one in self.started() if one["id"] not in known]

        wait_until(lambda: any(one["state"]["type"] in ENDED for one in fresh()), "the retraining's end", 600)
        found = next(one for one in fresh() if one["state"]["type"] in ENDED)
        tasks = [task["name"] for task in self.prefect.task_runs(found["id"])]
        state, shown = found["state"], self.prefect.artifacts(found["id"])
        return FlowRun(found["name"], state["name"], state["message"] or "", shown, tasks)

    def champion(self) -> Champion | None:
        """Who is champion in the clone."""
        return read_champion(self.project).champion

    def main(self) -> str:
        """The commit of main at the Git remote."""
        return git(self.origin, "rev-parse", "main").strip()

    def news(self) -> dict[str, Any]:
        """The webhook's last notification."""
        return self.webhook.got[-1][1]

    def ledger(self) -> list[Drop]:
        """The ledger of main at the Git remote."""
        return parse_ledger(git(self.origin, "show", "main:data/drops.json").encode(), "main")


@contextmanager
def a_world(folder: Path, store: S3Server, **params: Any) -> Iterator[World]:
    """A world with nothing in it: no drop, no model; main is at the Git remote."""
    webhook = Webhook()
    project = make_project(folder, REMOTE, **{"ingest.watch": [LANDING], **params})
    (folder / "prefect").mkdir()
    try:
        with prefect_with_worker(
            folder / "prefect", project, pool="csdn-local", CSDN_WEBHOOK=webhook.address
        ) as prefect:
            yield World(project, folder / "origin.git", store, prefect, webhook)
    finally:
        webhook.close()


def make_project(folder: Path, remote: str, **params: Any) -> Path:
    """A clone with an empty ledger; its Git remote is bare, its DVC remote is `remote`."""
    project = make_repository(folder / "project", **params)
    write_ledger([], project / "data/drops.json")
    run(project, "dvc", "remote", "add", "--default", "store", remote)
    git(project, "commit", "--quiet", "--all", "--message", "no data yet")
    git(folder, "init", "--quiet", "--bare", "--initial-branch", "main", "origin.git")
    git(project, "remote", "add", "origin", str(folder / "origin.git"))
    git(project, "push", "--quiet", "origin", "main")
    return project
