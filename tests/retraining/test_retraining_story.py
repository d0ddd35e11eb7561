"""How a model keeps up with its cameras: read it as the documentation of csdn-retrain/retrain.

It is all of it: a real Prefect server, worker and scheduler, an object store that asks for keys, a Git remote
and a webhook.
"""

from __future__ import annotations

import pytest
from make_images import write, write_people
from prefect_server import wait_until
from repository import git
from retraining_world import a_world
from workspace import STAGES, run

import csdn
from csdn.ingest.identities import SplitRule
from csdn.ingest.ledger import Status
from csdn.synthetic.sets import PeopleSet

pytestmark = pytest.mark.slow

PARAMS = {
    "data.test_percent": 60,
    "prompts.tokens.epochs": 3,
    "prompts.integration.epochs": 3,
    "embedding.epochs": 6,
    "embedding.identities_per_batch": 8,
    "warm_start.epochs": 4,
    "evaluation.trials": 3,
    "evaluation.flip_tta": False,
    "retrain.people": 20,
}
FIRST = PeopleSet(first=40_001, people=120, visible=1, infrared=2)
# New people, and new images of known people.
KNOWN = FIRST._replace(people=40, infrared=1, first_image=3)
SECOND = FIRST._replace(first=40_121, people=40, also=KNOWN)


def write_broken(folder):
    """A drop of which no image can be read, as a camera that fails would leave it."""
    for number in range(24):
        write(folder / f"visible/cam1/broken-{number}/1.png", b"no image")
    write(folder / "_SUCCESS", b"")


@pytest.fixture(scope="module")
def world(s3_server, tmp_path_factory):
    with a_world(tmp_path_factory.mktemp("world"), s3_server, **PARAMS) as world:
        yield world


def test_a_model_keeps_up_with_its_cameras(world, tmp_path):
    # Each night the server plans a scan of the watched place, with or without an event.
    wait_until(world.planned, "scans that the server plans")

    # The first drop comes, and an event says so. There is no champion yet: what is trained from nothing
    # becomes the first one, as it is better than chance and no worse than CLIP as it is.
    world.upload("monday", lambda folder: write_people(folder, FIRST), tmp_path)
    first = world.next_run(world.announce)
    assert first.name == "retrain: 120 new people, 960 images"
    assert (first.state, first.message) == ("Promoted", "v1 is champion")
    assert first.tasks == ["scan for camera data", *STAGES, "gate", "apply the decision"]
    splits = SplitRule("csdn", PARAMS["data.test_percent"])
    trained = [n for n in range(40_001, 40_121) if splits.split(splits.bucket(f"p{n}")) == "train"]
    assert world.champion().version == "v1" and world.champion().people == len(trained)
    assert world.news()["event"] == "promoted" and world.news()["version"] == "v1"

    # Main has moved, here and at the Git remote, and nothing is left to be done in the clone.
    assert git(world.project, "rev-parse", "main").strip() == world.main()
    assert git(world.project, "status", "--porcelain") == ""
    assert "up to date" in run(world.project, "dvc", "status").stdout

    # A second drop: people whom the champion has not seen, and new images of known ones. Training goes on
    # from the champion, on all drops; the gate compares both models, on people neither was trained on.
    pushed = set(world.store.names("dvc/"))
    world.upload("tuesday", lambda folder: write_people(folder, SECOND), tmp_path)
    second = world.next_run(world.announce)
    assert second.name == "retrain: 40 new people, 560 images"
    assert (second.state, second.message.split(";")[0]) == ("Promoted", "v2 is champion")
    assert "(+" in second.shown["figures"] or "(-" in second.shown["figures"]
    assert second.shown["gate"].startswith("### Promote")
    assert pushed < set(world.store.names("dvc/"))

    # No image of a third drop can be read: the run is rejected without training. The drop is held by a commit
    # on main, the champion stays, and a notification says why. (A model that became worse:
    # test_small_site_story.py.)
    before = world.main()
    world.upload("wednesday", write_broken, tmp_path)
    third = world.next_run(world.announce)
    assert third.state == "Rejected" and third.shown["gate"].startswith("### Reject the candidate")
    assert third.tasks == ["scan for camera data", "ingest", "apply the decision"]
    assert git(world.origin, "rev-parse", "main^").strip() == before and world.champion().version == "v2"
    assert world.news()["event"] == "rejected" and world.news()["reasons"]
    held = [drop for drop in world.ledger() if drop.status == Status.HELD]
    assert [drop.address.rpartition("/")[2] for drop in held] == ["wednesday"]
    assert held[0].reason.startswith("gate of run ")

    # The next scan is the schedule's. The broken drop is known, and nothing is new.
    with world.scan_every(20):
        by_schedule = world.next_run()
    assert (by_schedule.state, by_schedule.message) == ("Nothing to do", "nothing is new")

    # Who clones the project has all of this: its history, and with one command the champion.
    git(tmp_path, "clone", "--quiet", str(world.origin), "clone")
    clone = tmp_path / "clone"
    outcomes = [line.split()[2] for line in run(clone, "csdn", "history").stdout.splitlines()]
    assert outcomes == ["promoted", "promoted", "rejected"]
    assert "version v2" in run(clone, "csdn", "fetch-champion").stdout
    assert csdn.load(clone / "champion/embedding")


def test_a_scan_while_the_store_is_unavailable_succeeds_later(world):
    """The event does not need the store; the scan waits, or is retried."""
    with world.store.away(25):
        found = world.next_run(world.announce)
    assert (found.state, found.message) == ("Nothing to do", "nothing is new")
