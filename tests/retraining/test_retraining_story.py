"""How a model keeps up with its cameras: read it as the documentation of csdn-retrain/retrain.

It is all of it: a real Prefect server, worker and scheduler, an object store that asks for keys, a Git remote
and a webhook.
"""

from __future__ import annotations

import pytest
from garbage import write_shuffled
from prefect_server import wait_until
from repository import git
from retraining_world import a_world
from workspace import STAGES, run

import csdn
from csdn.ingest.ledger import Status
from csdn.synthetic.sets import SETS, write_images

pytestmark = pytest.mark.slow

# 150 people are tested on, so that the gate's decisions mean something (docs/gate.md).
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
    # Narrower than the committed ones: what comes second is surely better here, and the third surely worse.
    "gate.rank1_margin": 3.0,
    "gate.map_margin": 1.0,
}
# The people of the first drop again, in new images, each with the name of somebody drawn at random.
GARBAGE = SETS["gate"]._replace(first_image=11)


@pytest.fixture(scope="module")
def world(s3_server, tmp_path_factory):
    with a_world(tmp_path_factory.mktemp("world"), s3_server, **PARAMS) as world:
        yield world


def test_a_model_keeps_up_with_its_cameras(world, tmp_path):
    # Each night the server plans a scan of the watched place, with or without an event.
    wait_until(world.planned, "scans that the server plans")

    # The first drop comes, and an event says so. There is no champion yet: what is trained from nothing
    # becomes the first one, as it is better than chance and no worse than CLIP as it is.
    world.upload("monday", lambda folder: write_images("gate", folder), tmp_path)
    first = world.next_run(world.announce)
    assert first.name == "retrain: 240 new people, 1920 images"
    assert (first.state, first.message) == ("Promoted", "v1 is champion")
    assert first.tasks == ["scan for camera data", *STAGES, "gate", "apply the decision"]
    assert world.champion().version == "v1" and world.champion().people == 90
    assert world.news()["event"] == "promoted" and world.news()["version"] == "v1"

    # Main has moved, here and at the Git remote, and nothing is left to be done in the clone.
    assert git(world.project, "rev-parse", "main").strip() == world.main()
    assert git(world.project, "status", "--porcelain") == ""
    assert "up to date" in run(world.project, "dvc", "status").stdout

    # A second drop: people whom the champion has not seen, and new images of known ones. Training goes on
    # from the champion, on all drops; the gate compares both models, on people neither was trained on.
    pushed = set(world.store.names("dvc/"))
    world.upload("tuesday", lambda folder: write_images("gate-more", folder), tmp_path)
    second = world.next_run(world.announce)
    assert second.name == "retrain: 80 new people, 1120 images"
    assert (second.state, second.message.split(";")[0]) == ("Promoted", "v2 is champion")
    assert "(+" in second.shown["figures"] or "(-" in second.shown["figures"]
    assert second.shown["gate"].startswith("### Promote")
    assert pushed < set(world.store.names("dvc/"))

    # A third drop is garbage: every image has the name of somebody drawn at random. The run is rejected. Its
    # drop is held on the run's branch, main and the champion stay, and a notification says why.
    before = world.main()
    world.upload("wednesday", lambda folder: write_shuffled(folder, GARBAGE), tmp_path)
    third = world.next_run(world.announce)
    assert third.state == "Rejected" and third.shown["gate"].startswith("### Reject the candidate")
    assert world.main() == before and world.champion().version == "v2"
    assert world.news()["event"] == "rejected" and world.news()["reasons"]
    (branch,) = git(world.origin, "branch", "--list", "run/*", "--no-merged", "main").split()
    held = [drop for drop in world.ledger_of(branch) if drop.status == Status.HELD]
    assert [drop.address.rpartition("/")[2] for drop in held] == ["wednesday"]
    assert held[0].reason.startswith("gate of run ")

    # The next scan is the schedule's. The garbage is known, and nothing is new.
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
