"""The gate's rule: when a candidate becomes the champion, and the reasons that are given."""

import pytest

from csdn.params import GateParams
from csdn.retraining.gate import (
    CHAMPION,
    TODAY,
    Comparison,
    Decision,
    as_json,
    decide,
    decide_first,
    table_lines,
)

RULE = GateParams(
    rank1_margin=5.0,
    map_margin=3.0,
    max_pair_drop=15.0,
    min_people=20,
    confidence=0.95,
    bootstrap_samples=100,
)


def comparison(difference=0.0, half=2.0, data=TODAY, metric="rank1", people=150, champion=20.0, cameras=None):
    return Comparison(
        data=data,
        direction="infrared_to_visible",
        metric=metric,
        champion=champion,
        candidate=champion + difference,
        difference=difference,
        low=difference - half,
        high=difference + half,
        queries=4 * people,
        people=people,
        query_camera=cameras and cameras[0],
        gallery_camera=cameras and cameras[1],
    )


PAIR = ("cam5", "cam1")


@pytest.mark.parametrize(
    "comparisons, decision",
    [
        ([comparison(0)], "promote"),
        ([comparison(-3.0)], "promote"),  # low is -5: at the margin
        ([comparison(-3.01)], "reject"),
        (
            [comparison(+9.0, half=15.0)],
            "reject",
        ),  # better, but the interval is too wide
        ([comparison(0), comparison(-1, metric="mAP")], "promote"),
        ([comparison(0), comparison(-1.01, metric="mAP")], "reject"),  # mAP has a margin of its own
        ([comparison(0), comparison(-4, data=CHAMPION)], "reject"),
        ([comparison(0, people=19)], "reject"),
        ([comparison(0), comparison(-15, half=14, cameras=PAIR)], "reject"),
        ([comparison(0), comparison(-15, half=16, cameras=PAIR)], "promote"),  # may be chance
        ([comparison(0), comparison(-14, half=2, cameras=PAIR)], "promote"),  # worse, no collapse
        ([comparison(0), comparison(-40, half=2, cameras=PAIR, people=19)], "promote"),
    ],
)
def test_the_rule(comparisons, decision):
    assert decide(comparisons, RULE).decision == decision


def test_a_rejection_names_every_reason_with_its_numbers():
    found = decide(
        [
            comparison(-4.0),
            comparison(-9.0, metric="mAP", data=CHAMPION),
            comparison(-20.0, cameras=PAIR),
        ],
        RULE,
    )
    assert found.reasons == [
        "may be worse by more than 5 points: rank-1, infrared to visible, today's data: "
        "20.0 % to 16.0 %, -4.0 points (-6.0 to -2.0)",
        "is worse by more than 3 points: mAP, infrared to visible, the champion's data: "
        "20.0 % to 11.0 %, -9.0 points (-11.0 to -7.0)",
        "a pair of cameras collapsed: rank-1, infrared to visible, cam5 to cam1, today's data: "
        "20.0 % to 0.0 %, -20.0 points (-22.0 to -18.0)",
    ]


def test_a_promotion_says_how_near_to_the_margin_it_was():
    found = decide([comparison(1.0), comparison(-1.0, metric="mAP"), comparison(-3, cameras=PAIR)], RULE)
    assert found.reasons == [
        "not worse by more than 5 points of rank-1 and 3 of mAP; nearest to it: mAP, infrared to visible, "
        "today's data: 20.0 % to 19.0 %, -1.0 points (-3.0 to +1.0)",
        "no pair of cameras collapsed, of 1 with 20 people or more",
    ]


def test_without_todays_data_there_is_nothing_to_decide_by():
    with pytest.raises(ValueError, match="today's data"):
        decide([comparison(data=CHAMPION), comparison(cameras=PAIR)], RULE)


def test_the_first_model_is_champion_unless_it_is_no_better_than_none():
    better, worse, guess = comparison(+8), comparison(-3), comparison(0, metric="mAP", half=1)
    above_chance = comparison(+10, metric="mAP")
    assert decide_first([better], [above_chance]) == Decision("promote", ["there is no champion yet"])
    # Worse than CLIP, but not significantly: not mentioned.
    assert decide_first([comparison(-1)], [above_chance]).reasons == ["there is no champion yet"]
    mixed = decide_first([better, worse], [above_chance])
    assert mixed.decision == "promote"
    assert mixed.reasons[1].startswith("surely worse than CLIP as it is: rank-1")
    assert decide_first([worse, worse], [above_chance]).decision == "reject"
    rejected = decide_first([better], [guess])
    assert rejected.decision == "reject"
    assert rejected.reasons[1].startswith("cannot be told from chance: mAP")


def test_the_table_fits_a_terminal_and_steers_none():
    pair = comparison(-40.0, champion=100.0, cameras=("\x1b[31mnorth", "south" * 20))
    decision = decide([comparison(-9.9, half=11.1, champion=100.0), pair], RULE)
    result = as_json(decision, "v1000", [comparison(-9.9, half=11.1, champion=100.0), pair], ["a note"])
    lines = table_lines(result)
    assert lines[0].split() == ["infrared", "to", "visible", "v1000", "candidate", "points", "interval"]
    assert lines[1].split()[-5:] == ["90.1", "-9.9", "-21.0", "to", "+1.2"]
    assert "\x1b" not in "\n".join(lines)
    assert lines[-1] == "- a note"
    assert all(len(line) <= 80 for part in lines for line in part.split("\n") if "southsouth" not in line)
