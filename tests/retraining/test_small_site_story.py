"""A small site, trained for real: it waits until it can decide; of five drops only the bad one is held."""

from __future__ import annotations

from pathlib import Path

import pytest
from garbage import write_shuffled
from make_images import write_people
from repository import git, make_repository
from workspace import run

from csdn.ingest.ledger import Status, read_ledger, write_ledger
from csdn.retraining.branches import Event, history
from csdn.synthetic.sets import PeopleSet
from csdn.training.champion import read_champion

pytestmark = pytest.mark.slow

FIRST = PeopleSet(first=50_001, people=80, visible=1, infrared=2)
# The first people again, in many new images, each with the name of somebody drawn at random.
SHUFFLED = FIRST._replace(first_image=11, visible=2, infrared=4)
PARAMS = {
    "data.test_percent": 60,
    "prompts.tokens.epochs": 2,
    "prompts.integration.epochs": 2,
    "embedding.epochs": 8,
    "embedding.identities_per_batch": 8,
    "warm_start.epochs": 3,
    "evaluation.flip_tta": False,
    "evaluation.trials": 3,
    "retrain.people": 4,
    "gate.min_people": 56,
    # With so few people the committed intervals are wide.
    "gate.rank1_margin": 10.0,
    "gate.map_margin": 2.0,
    "gate.confidence": 0.8,
    "gate.bootstrap_samples": 500,
    "gate.memory": 1,
}


@pytest.fixture
def project(tmp_path):
    """It has no data yet, and watches the folder `in` beside it."""
    (tmp_path / "in").mkdir()
    project = make_repository(tmp_path / "project", **PARAMS | {"ingest.watch": [str(tmp_path / "in")]})
    write_ledger([], project / "data/drops.json")
    git(project, "commit", "--quiet", "--all", "--message", "no data yet")
    return project


def night(project: Path) -> Event:
    """The newest decision after `csdn retrain`."""
    print(run(project, "csdn", "retrain").stdout)
    return history(project)[-1]


def people(first: int, count: int) -> PeopleSet:
    return FIRST._replace(first=first, people=count)


def test_a_small_site_promotes_without_help_and_only_the_shuffled_drop_is_held(project):
    # The first model is better than chance. Later ones need 56 test people: 60 % of 93 or more.
    write_people(project.parent / "in" / "monday", FIRST)
    assert night(project).outcome == "promoted"

    # The second night cannot decide. The champion stays, and the drop stays accepted.
    write_people(project.parent / "in" / "tuesday", people(51_001, 6))
    undecided = night(project)
    assert undecided.outcome == "undecided" and "test people" in undecided.reason
    assert read_champion(project).champion.version == "v1"
    assert [drop.status for drop in read_ledger(project / "data/drops.json")] == 2 * [Status.ACCEPTED]

    # The third night has those people as well, and can.
    write_people(project.parent / "in" / "wednesday", people(52_001, 14))
    assert night(project).version == "v2"
    assert read_champion(project).champion.people > 30

    # Five drops, of which one is shuffled: the rejected run is repeated without some of them.
    for number, name in enumerate(("1", "2", "3", "5")):
        write_people(project.parent / "in" / f"thursday-{name}", people(53_001 + 100 * number, 5))
    write_shuffled(project.parent / "in/thursday-4", SHUFFLED)
    night(project)
    assert read_champion(project).champion.version == "v3"
    held = [drop for drop in read_ledger(project / "data/drops.json") if drop.status != Status.ACCEPTED]
    assert [drop.address.rpartition("/")[2] for drop in held] == ["thursday-4"]
    assert "promoted without it" in held[0].reason
    outcomes = [event.outcome for event in history(project)[3:]]
    assert outcomes[0] == "rejected" and outcomes[-1] == "promoted" and len(outcomes) == 3
