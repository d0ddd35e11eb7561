"""When new camera data is enough to retrain, and what is said of it."""

from __future__ import annotations

import datetime

import pytest
from make_images import make_drop, write

from csdn.ingest.identities import SplitRule
from csdn.ingest.ledger import Drop
from csdn.ingest.sync import open_drop
from csdn.params import RetrainParams
from csdn.retraining.trigger import Arrivals, Since, count_arrivals, people_of, should_retrain
from csdn.runtime.errors import UserError

THRESHOLDS = RetrainParams(images=100, people=5, days=30, drift=False, blame_runs=4)
DAY = datetime.date(2026, 11, 1)
CHOSEN, UNDECIDED = Since(DAY), Since(DAY, "run 20261101-0a1b2c3d was left undecided")
NEXT_DAY = DAY + datetime.timedelta(days=1)
IDENTITY = SplitRule("csdn", 40, {"bobby": "bo"})


@pytest.mark.parametrize(
    "images, people, days, retrain, why",
    [
        (0, 0, 900, False, "nothing is new"),
        (
            99,
            4,
            29,
            False,
            "not enough yet: 99 new images (retrain.images: 100), 4 new people (retrain.people: 5), "
            "29 days since the champion was chosen (retrain.days: 30)",
        ),
        (100, 0, 0, True, "100 new images (retrain.images: 100)"),
        (1, 5, 0, True, "5 new people (retrain.people: 5)"),
        (1, 1, 30, True, "30 days since the champion was chosen (retrain.days: 30)"),
        (
            100,
            5,
            1,
            True,
            "100 new images (retrain.images: 100), 5 new people (retrain.people: 5)",
        ),
    ],
)
def test_one_threshold_is_enough(images, people, days, retrain, why):
    today = DAY + datetime.timedelta(days=days)
    decision = should_retrain(Arrivals(images, people), CHOSEN, today, THRESHOLDS)
    assert decision == (retrain, why)


def test_a_changed_camera_is_enough_and_named():
    drift = ["visible camera gate of drop 0123: brightness 90 -> 40", "visible camera yard of drop 0123: new"]
    assert should_retrain(Arrivals(1, 0), CHOSEN, NEXT_DAY, THRESHOLDS, drift) == (
        True,
        f"drift (retrain.drift): {drift[0]}; {drift[1]}",
    )
    assert should_retrain(Arrivals(0, 0), CHOSEN, NEXT_DAY, THRESHOLDS, drift) == (False, "nothing is new")


def test_after_an_undecided_run_the_counts_begin_anew():
    assert should_retrain(Arrivals(0, 0), UNDECIDED, NEXT_DAY, THRESHOLDS) == (
        False,
        "nothing is new since run 20261101-0a1b2c3d was left undecided",
    )
    enough, why = should_retrain(Arrivals(1, 1), UNDECIDED, NEXT_DAY, THRESHOLDS)
    assert not enough and why.endswith(
        "1 day since run 20261101-0a1b2c3d was left undecided (retrain.days: 30)"
    )


def test_without_a_champion_any_image_is_enough():
    decision = should_retrain(Arrivals(1, 1), None, NEXT_DAY, THRESHOLDS)
    assert decision == (True, "1 new person, 1 image; there is no champion yet")


def drop_at(folder, *people) -> Drop:
    return open_drop(str(make_drop(folder, people)), "cameras")[0]


def test_people_are_counted_once_by_whatever_name_and_known_ones_not_at_all(tmp_path):
    first, second = drop_at(tmp_path / "a", "Ana", "Bo"), drop_at(tmp_path / "b", "BO", "Bobby", "Cy")
    new = count_arrivals([first, second], people={"ana"}, rule=IDENTITY)
    assert people_of([second], IDENTITY) == {"bo", "cy"}
    assert new == Arrivals(30, 2) and str(new) == "2 new people, 30 images"
    assert count_arrivals([second], people={"ana", "bo"}, rule=IDENTITY) == Arrivals(18, 1)
    assert count_arrivals([], (), IDENTITY) == Arrivals(0, 0)


def test_an_image_without_a_label_counts_as_an_image_alone(tmp_path):
    write(tmp_path / "a/visible/north/stranger.jpg", b"x")
    write(tmp_path / "a/_SUCCESS", b"")
    drop = open_drop(str(tmp_path / "a"), "cameras")[0]
    assert count_arrivals([drop], (), IDENTITY) == Arrivals(1, 0)


def test_a_new_drop_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        count_arrivals([Drop("a" * 64, str(tmp_path / "gone"), "cameras")], (), IDENTITY)
