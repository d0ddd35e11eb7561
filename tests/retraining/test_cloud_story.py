"""How a retraining works where no machine keeps anything (docs/prefect.md, "Workers that keep nothing").

Each worker has an empty folder, a cache and a home of its own; it knows the Prefect server, the project's Git
address and the keys of the object store. Everything else is in Git, in DVC's remote and in the bucket.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from prefect_server import SLOT_WAIT, Prefect, wait_until
from processes import end_marked, marks
from repository import git
from retraining_world import LANDING, REMOTE, World, make_project
from s3_server import BUCKET
from webhook import Webhook
from workspace import ROOT

from csdn.synthetic.sets import write_images
from csdn.training.champion import ChampionFile, parse_champion

pytestmark = pytest.mark.slow

DEPLOYMENT = ROOT / "deploy/prefect/bare.yaml"
POOL = "csdn-bare"
PARAMS = {
    "ingest.watch": [LANDING],
    "ingest.store": f"s3://{BUCKET}/shards",
    "scaling.checkpoint_dir": f"s3://{BUCKET}/checkpoints",
    "scaling.checkpoint_seconds": 0,
    # The story is about machines: models stay close to CLIP, and each version is good enough.
    "prompts.tokens.epochs": 3,
    "prompts.integration.epochs": 3,
    "embedding.epochs": 30,
    "embedding.learning_rate": 0.000001,
    "embedding.head_learning_rate": 0.00001,
    "warm_start.epochs": 1,
    "evaluation.flip_tta": False,
    "retrain.people": 20,
    "gate.min_people": 5,
    "gate.rank1_margin": 100.0,
    "gate.map_margin": 100.0,
    "gate.max_pair_drop": 100.0,
}


class Machine:
    """A machine with an empty disk, on which a worker of the pool runs."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder = folder
        for name in ("work", "home", "tmp"):
            (folder / name).mkdir(parents=True)
        own = {"HOME": "home", "XDG_CACHE_HOME": "cache", "TMPDIR": "tmp", "PREFECT_HOME": "home/.prefect"}
        own |= {"DVC_SITE_CACHE_DIR": "site", "PREFECT_PROFILES_PATH": "home/profiles.toml"}
        environment = world.prefect.environment | {name: str(folder / path) for name, path in own.items()}
        environment |= marks(str(folder)) | {"CSDN_REPOSITORY": world.origin.as_uri()}
        environment.pop("PYTHONPATH", None)  # the code is that of the clone
        with (folder / "worker.log").open("wb") as log:
            self.worker = subprocess.Popen(
                ["prefect", "worker", "start", "--pool", POOL],
                cwd=folder / "work",
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def lose(self) -> None:
        """All its processes end at once, and its disk is gone."""
        end_marked(str(self.folder))
        self.worker.wait()
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def world(s3_server, tmp_path_factory):
    """The project at its Git remote, a Prefect server with the deployment, and no worker."""
    folder, webhook = tmp_path_factory.mktemp("cloud"), Webhook()
    project = make_project(folder, REMOTE, **PARAMS)
    # The clock that the test sets starts the runs, and not the night.
    definition = yaml.safe_load(DEPLOYMENT.read_text())
    del definition["deployments"][0]["schedules"]
    (project / "bare.yaml").write_text(yaml.safe_dump(definition))
    (folder / "prefect").mkdir()
    prefect = Prefect(folder / "prefect")
    prefect.environment |= {
        "DVC_NO_ANALYTICS": "1",
        "CSDN_WEBHOOK": webhook.address,
        "PREFECT_WORKER_QUERY_SECONDS": "3",
        SLOT_WAIT: "3",
    }
    try:
        with prefect.running(project, POOL, "bare.yaml"):
            yield World(project, folder / "origin.git", s3_server, prefect, webhook)
    finally:
        webhook.close()


@pytest.fixture
def machine(world, tmp_path):
    """machine(name): a new one; what is left of it ends with the test."""
    started = []

    def start(name: str) -> Machine:
        started.append(Machine(tmp_path / name, world))
        return started[-1]

    yield start
    for one in started:
        if one.worker.poll() is None:
            one.lose()


def test_any_machine_goes_on_where_the_lost_one_was(world, machine, tmp_path):
    # The first drop is there, and the clock starts a retraining on the first machine. It is lost in stage 2.
    world.upload("monday", lambda folder: write_images("tiny", folder), tmp_path)
    first = machine("first")
    by_clock(world)
    wait_until(lambda: last_saved(world), "a checkpoint in the bucket")
    lose(first, world)
    saved = last_saved(world)
    assert champion_file(world).champion is None

    # The finished stages are on the run's branch, their outputs in DVC's remote.
    (branch,) = git(world.origin, "branch", "--list", "run/*").split()
    finished = git(world.origin, "log", "--format=%s", f"main..{branch}").splitlines()
    assert [subject.rpartition(": ")[2] for subject in finished] == [
        "prompts is finished",
        "ingest is finished",
        "begin",
    ]

    # The clock's next run is on another machine, and goes on with the same retraining: no stage is repeated,
    # and stage 2 starts at the last checkpoint.
    second = machine("second")
    resumed = by_clock(world)
    end = world.prefect.end_of(resumed)
    assert (end["name"], end["message"]) == ("Promoted", "v1 is champion")
    printed = {task["name"]: world.prefect.log(task["id"]) for task in world.prefect.task_runs(resumed)}
    for stage in ("ingest", "prompts"):
        assert f"Stage '{stage}' didn't change, skipping" in printed[stage]
    done = [
        int(step) for step in re.findall(r"^embedding: (\d+)/\d+ steps", printed["embedding"], re.MULTILINE)
    ]
    assert saved < done[0] <= saved + 20 < done[-1]

    # It has promoted the run that the first one began, and pushed it; no checkpoint is left.
    assert world.main() == git(world.origin, "rev-parse", branch).strip()
    assert champion_file(world).champion.run == branch.removeprefix("run/")
    assert world.store.names("checkpoints/") == []

    # On a third machine the next run starts from that champion.
    lose(second, world)
    world.upload("tuesday", lambda folder: write_images("later", folder), tmp_path)
    machine("third")
    third = by_clock(world)
    end = world.prefect.end_of(third)
    assert (end["name"], end["message"].split(";")[0]) == ("Promoted", "v2 is champion")
    assert champion_file(world).start.version == "v1"
    assert not list(world.project.glob(".runs/*-*"))  # the clone of the person who set it up took no part


def lose(machine: Machine, world: World) -> None:
    """The machine is lost, and a person says so at once on the pages of the runs that it had.

    Otherwise the server would keep their places for five minutes.
    """
    machine.lose()
    for one in world.started():
        if one["state"]["type"] in ("PENDING", "RUNNING"):
            world.prefect.api(f"flow_runs/{one['id']}/set_state", state={"type": "CRASHED"}, force=True)


def by_clock(world: World) -> str:
    """The id of the next retraining that the clock starts and a worker begins."""
    known = {one["id"] for one in world.started()}

    def running() -> list[str]:
        return [
            one["id"]
            for one in world.started()
            if one["id"] not in known and one["state"]["type"] == "RUNNING" and one["auto_scheduled"]
        ]

    with world.scan_every(20):
        wait_until(running, "a run that the clock has started")
    return running()[0]


def champion_file(world: World) -> ChampionFile:
    """champion.json of main at the Git remote."""
    return parse_champion(git(world.origin, "show", "main:champion.json").encode(), "champion.json")


def last_saved(world: World) -> int:
    """The step of the furthest checkpoint in the bucket; 0 where there is none."""
    found = [0]
    for name in world.store.names("checkpoints/"):
        with suppress(world.store.bucket.meta.client.exceptions.NoSuchKey):  # it has just been replaced
            if name.endswith("/state.json"):
                state = json.loads(world.store.bucket.Object(name).get()["Body"].read())
                found.append(state["position"]["log"][-1]["step"])
    return max(found)
