"""The overhead of Prefect, and the cost of a small drop: the figures of docs/prefect.md. Takes minutes.

    python benchmarks/retraining.py

* Latency from the event to the start of the first stage, with a warm server.
* The five stages as a flow, compared with plain `dvc repro` on the same data.
* Ingest of a drop that is 1 % of the data, and the files it adds to DVC's remote.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from prefect_server import Prefect, prefect_with_worker, wait_until
from repository import git
from retraining_world import EVENT, make_project
from workspace import STAGES, run

from csdn.ingest.ledger import read_ledger, write_ledger
from csdn.ingest.sync import open_drop
from csdn.synthetic.sets import MARKER, PeopleSet, images_of, png

EVENTS = 3
ROUNDS = 2
PEOPLE = 200  # 16 images each
ONE_PERCENT = 2


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        params = {"ingest.watch": [str(folder / "in")], "retrain.people": 1}
        project = make_project(folder, str(folder / "dvc"), **params)
        (folder / "in").mkdir()
        show_ingest(folder, project)
        (folder / "prefect").mkdir()
        with prefect_with_worker(folder / "prefect", project, pool="csdn-local") as prefect:
            show_overhead(folder, project, prefect)
            show_latency(folder, project, prefect)


def write_drop(folder: Path, people: PeopleSet) -> None:
    for image in images_of(people):
        path = folder / image.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    (folder / MARKER).touch()


def show_ingest(folder: Path, project: Path) -> None:
    """Seconds of the ingest stage alone, and the files that `dvc push` added to the remote."""
    for name, first, people in (("all", 1_001, PEOPLE), ("1 %", 1_001 + PEOPLE, ONE_PERCENT)):
        write_drop(folder / "drops" / name, PeopleSet(first, people, visible=2, infrared=4))
        drop, images = open_drop(str(folder / "drops" / name), "cameras")
        write_ledger([*read_ledger(project / "data/drops.json"), drop], project / "data/drops.json")
        seconds = timed(project, "python", "-m", "stages.ingest")
        run(project, "dvc", "commit", "--force", "ingest")
        before = stored(folder / "dvc")
        run(project, "dvc", "push", "data/shards")
        new = {path: size for path, size in stored(folder / "dvc").items() if path not in before}
        print(
            f"ingest, {name}: {images} images in {seconds:.1f} s; pushed of data/shards: {len(new)} files, "
            f"{sum(new.values()) / 1e3:.0f} kB",
            flush=True,
        )
    print(f"ingest, nothing new: {timed(project, 'python', '-m', 'stages.ingest'):.1f} s")
    git(project, "commit", "--quiet", "--all", "--message", "drops")
    git(project, "push", "--quiet", "origin", "main")


def stored(remote: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in remote.rglob("*") if path.is_file()}


def show_overhead(folder: Path, project: Path, prefect: Prefect) -> None:
    """Wall time from the request to the end of both, each in its own copy of the project."""
    for number in range(ROUNDS):
        plain, flow = (
            shutil.copytree(project, folder / f"{name}-{number}", symlinks=True) for name in ("plain", "flow")
        )
        seconds = timed(plain, "dvc", "repro")
        began = time.monotonic()
        end = prefect.end_of(prefect.deployment_run(project, "full-pipeline", workspace=str(flow)))
        assert end["type"] == "COMPLETED", end
        print(
            f"five stages: dvc repro {seconds:.0f} s, csdn/full-pipeline {time.monotonic() - began:.0f} s",
            flush=True,
        )


def show_latency(folder: Path, project: Path, prefect: Prefect) -> None:
    """Seconds from emitting an event to the start of ingest in the run that it triggers."""
    for number in range(EVENTS):
        people = PeopleSet(50_001 + 10 * number, people=4, visible=1, infrared=1)
        write_drop(folder / "in" / f"drop-{number}", people)
        known = {one["id"] for one in prefect.runs_of("retrain")}
        prefect.run(project, "event", "emit", EVENT, "--resource-id", "cameras")
        sent = time.time()

        def ingests(known: set[str] = known) -> list[float]:
            fresh = [one["id"] for one in prefect.runs_of("retrain") if one["id"] not in known]
            return [
                datetime.fromisoformat(task["start_time"]).timestamp()
                for identifier in fresh
                for task in prefect.task_runs(identifier)
                if task["name"] == STAGES[0] and task["start_time"]
            ]

        wait_until(ingests, "the first stage", 120)
        start = min(ingests())
        print(f"event {number + 1}: first stage {start - sent:.1f} s after the command that sent it")
        for one in prefect.runs_of("retrain"):
            if one["id"] not in known:
                prefect.end_of(one["id"])


def timed(folder: Path, *command: str) -> float:
    began = time.monotonic()
    run(folder, *command)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
