"""What to look at next: each rule speaks above its threshold, is silent below, and states its number."""

import re

import numpy as np
import pytest

from csdn.report import advice
from csdn.report.advice import STEPS, Evidence, next_steps
from csdn.report.wording import NBSP

DIRECTIONS = ("infrared_to_visible", "visible_to_infrared")


def figures(trained=(40.0, 40.0), clip=(20.0, 20.0), std=1.0, excluded=5):
    def of(means):
        return {d: {"rank1": {"mean": m, "std": std}} for d, m in zip(DIRECTIONS, means, strict=True)}

    counts = {direction: {"excluded_pairs": excluded} for direction in DIRECTIONS}
    return {"trained": of(trained), "clip": of(clip), "counts": counts}


def said(step):
    return re.sub("</?bdi>", "", step.text).replace(NBSP, " ")


def test_a_small_gain_is_named_with_its_spread():
    assert advice.small_gain(figures()) is None
    step = advice.small_gain(figures(trained=(21.5, 40.0)))
    assert "infrared → visible +1.5 points of rank-1 (spread 1.0)" in said(step)
    assert "visible → infrared" not in said(step)
    assert advice.small_gain(figures(trained=(20.0, 40.0), std=None)) is not None  # no gain at all
    assert advice.small_gain(figures(trained=(None, None))) is None


def pairs(*rank1s, queries="100"):
    return [
        {"query_camera": f"q{n}", "gallery_camera": "g", "rank1": str(value), "mAP": "1", "queries": queries}
        for n, value in enumerate(rank1s)
    ]


def test_the_weakest_pair_is_named_where_it_is_no_chance():
    # Around a mean of 25 the standard error of 100 queries is 4.4 points: 15 is 2.4 of them below, 17 is 2.0.
    step = advice.weakest_pair(pairs(15.0, 30.0, 31.0))
    assert said(step) == "q0 → g has rank-1 15.0 % over 100 queries; the best, q2 → g, 31.0 %."
    assert advice.weakest_pair(pairs(17.0, 30.0, 30.0)) is None
    assert advice.weakest_pair(pairs(15.0, 30.0, 30.0, queries="10")) is None
    assert advice.weakest_pair(pairs(15.0)) is None


def query(person, rank, direction=DIRECTIONS[0]):
    ap = None if rank is None else 50.0
    return {"person": person, "first_rank": rank, "ap": ap, "direction": direction}


def test_people_are_not_found_when_none_of_their_queries_is_early():
    rows = [
        query("anna", 11),
        query("anna", 40, DIRECTIONS[1]),
        query("ben", 90),
        query("ben", 10),
        query("carl", None),
    ]
    step = advice.people_not_found(rows)
    assert said(step) == "1 of 2 test people have no query with a match among the first 10: anna."
    many = advice.people_not_found([query(f"p{n}", 20 + n) for n in range(5)])
    assert said(many).endswith("p4, p3, p2 and others.")
    assert advice.people_not_found(rows[2:4]) is None


def test_a_gap_of_the_directions_is_stated():
    step = advice.direction_gap(figures(trained=(30.0, 40.0)))
    assert said(step).startswith("Infrared → visible has a rank-1 10.0 points below visible → infrared.")
    assert advice.direction_gap(figures(trained=(36.0, 40.0))) is None
    assert advice.direction_gap(figures(trained=(30.0, 40.0), std=12.0)) is None
    assert advice.direction_gap(figures(trained=(None, 40.0))) is None


def test_standard_error_is_over_people_not_queries():
    rows = [query("anna", 1), query("anna", 2), query("ben", 1), query("carl", 5)]
    # Means 50, 100, 0: deviation 50, over the root of three.
    assert advice.standard_error(rows) == pytest.approx(50 / 3**0.5)
    assert advice.standard_error(rows[:2]) == 0.0
    assert "28.9 points over the 3 test people" in said(advice.error_over_people(rows))
    sure = [query(f"p{n}", 1) for n in range(9)]
    assert advice.error_over_people(sure) is None
    assert advice.error_over_people([]) is None


def test_the_rule_that_never_fires_is_told():
    assert advice.rule_never_fires(figures()) is None
    assert advice.rule_never_fires(figures(excluded=None)) is None  # a rule that is not about cameras
    assert "0 pairs" in said(advice.rule_never_fires(figures(excluded=0)))


def test_refused_images_are_told_above_a_share():
    assert advice.refused_images({"empty file": 5}, 1000) is None
    step = advice.refused_images({"empty file": 5, "not an image": 7}, 1000)
    assert said(step) == "12 of 1000 images were refused; most often (7): not an image."


def test_few_images_are_told_above_a_share_of_people():
    enough, few = [[4, 4]] * 19, [[4, 1]]
    assert advice.few_images(np.array(enough + few), 4) is None
    step = advice.few_images(np.array(enough + few * 2), 4)
    assert said(step).startswith("2 of 21 training people have fewer than 4 images of one modality")


def test_images_are_counted_by_person_and_modality():
    counts = advice.train_image_counts(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 0, 1, 1]))
    assert counts.tolist() == [[1, 1], [1, 0], [0, 2]]


def test_texts_that_know_one_modality_less_well_are_told():
    naming = {"fused_names_visible": 83.0, "fused_names_infrared": 57.7}
    step = advice.naming_gap(naming)
    assert step.title == "Texts name infrared images less well"
    assert "57.7 % of the infrared training images and 83.0 % of the visible ones" in said(step)
    assert advice.naming_gap({"fused_names_visible": 67.7, "fused_names_infrared": 57.7}) is None


def test_losses_that_still_fall_are_told_by_phase():
    falling, settled = [10, 10, 10, 10, 9], [10, 10, 10, 10, 9.6]
    step = advice.losses_still_fall({"one": falling, "other": settled})
    assert "steps: one by 10.0 %." in said(step)
    assert advice.losses_still_fall({"other": settled, "short": [3, 1]}) is None


def test_losses_come_from_the_logs_phase_by_phase():
    log = [{"phase": phase, "loss": loss} for phase, loss in (("prompts", "3"), ("integration", "2"))]
    found = advice.phase_losses(log, [{"total": "5"}])
    assert found == {
        "stage 1's prompts loss": [3.0],
        "stage 1's integration loss": [2.0],
        "stage 2's sum of losses": [5.0],
    }


def evidence(**changes):
    calm = {
        "figures": figures(),
        "camera_pairs": pairs(30.0, 30.0),
        "queries": [query(f"p{n}", 1) for n in range(9)],
        "naming": {"fused_names_visible": 60.0, "fused_names_infrared": 60.0},
        "losses": {"one": [5.0] * 10},
        "train_images": np.full((9, 2), 4),
        "images_of_batch": 4,
        "refused": {},
        "images": 100,
    }
    return Evidence(**calm | changes)


def test_a_calm_run_has_nothing_to_look_at_and_a_bad_one_no_more_than_a_few():
    assert next_steps(evidence()) == []
    bad = evidence(
        figures=figures(trained=(20.0, 30.0), excluded=0),
        camera_pairs=pairs(1.0, 50.0),
        queries=[query("anna", 50), query("ben", 1)],
        naming={"fused_names_visible": 90.0, "fused_names_infrared": 20.0},
        losses={"one": [9.0] * 4 + [1.0]},
        train_images=np.full((9, 2), 1),
        refused={"empty file": 50},
    )
    steps = next_steps(bad)
    assert len(steps) == STEPS
    assert steps[0].title == "Training adds little to CLIP"
    assert all(any(character.isdigit() for character in step.text) for step in steps)
