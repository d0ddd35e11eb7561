"""The gate's rule: when a candidate becomes the champion, and the reasons that are given."""

from dataclasses import replace

import pytest

from csdn.params import GateParams
from csdn.retraining.gate import (
    BEST,
    CHAMPION,
    TODAY,
    Comparison,
    Decision,
    as_json,
    decide,
    decide_first,
    table_lines,
    worse_than_clip,
)

RULE = GateParams(
    rank1_margin=5.0,
    map_margin=3.0,
    max_pair_drop=15.0,
    min_people=20,
    confidence=0.95,
    bootstrap_samples=100,
    memory=5,
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
        ([comparison(-3.01)], "reject"),  # surely worse, and perhaps by more than the margin
        ([comparison(-3.01, half=3.02)], "undecided"),  # perhaps by more than the margin, perhaps not worse
        ([comparison(-2.5, half=2.4)], "promote"),  # surely worse, but not by more than the margin
        ([comparison(+9.0, half=15.0)], "undecided"),  # better, but the interval is too wide
        ([comparison(0), comparison(-1, metric="mAP")], "promote"),
        ([comparison(0), comparison(-1.01, metric="mAP")], "undecided"),  # mAP has a margin of its own
        ([comparison(0), comparison(-2.5, metric="mAP")], "reject"),
        ([comparison(0), comparison(-2.1, metric="mAP")], "undecided"),  # not sure, as one of two intervals
        ([comparison(-2.1, metric="mAP")], "reject"),
        # The champion's data.
        ([comparison(0), comparison(-4, data=CHAMPION)], "reject"),
        ([comparison(0), comparison(-4, half=5, data=CHAMPION)], "undecided"),
        ([comparison(0), comparison(-40, data=CHAMPION, people=19)], "promote"),  # too few to be evidence
        # Too few test people today: no figure is evidence.
        ([comparison(0, people=19)], "undecided"),
        ([comparison(+20, people=19)], "undecided"),
        ([comparison(-20, people=19)], "undecided"),
        ([comparison(0, people=19), comparison(-20, data=CHAMPION)], "reject"),
        # Pairs of cameras.
        ([comparison(0), comparison(-15, half=14, cameras=PAIR)], "reject"),
        ([comparison(0), comparison(-15, half=16, cameras=PAIR)], "promote"),  # may be chance
        ([comparison(0), comparison(-14, half=2, cameras=PAIR)], "promote"),  # worse, no collapse
        ([comparison(0), comparison(-40, half=2, cameras=PAIR, people=19)], "promote"),
        ([comparison(0, half=15), comparison(-15, cameras=PAIR)], "reject"),  # evidence of harm comes first
        # The best of the last versions: the new data is not to blame for what was lost before.
        ([comparison(0), comparison(-3, data=BEST)], "promote"),
        ([comparison(0), comparison(-4, data=BEST)], "undecided"),
        ([comparison(0), comparison(-9, data=BEST)], "undecided"),
    ],
)
def test_the_rule(comparisons, decision):
    assert decide(comparisons, RULE, "v4").decision == decision


def test_the_more_comparisons_the_surer_a_rejection_must_be():
    """Of many intervals of an equally good candidate, one easily lies wholly below 0."""
    worse = comparison(-4.5, half=4.0)
    found = {n: decide([worse, *[comparison(0)] * (n - 1)], RULE).decision for n in (1, 2, 8)}
    assert found == {1: "reject", 2: "undecided", 8: "undecided"}
    assert decide([comparison(-6.0, half=4.0), *[comparison(0)] * 7], RULE).decision == "reject"


def test_the_direction_with_the_fewest_people_counts():
    other = replace(comparison(0, people=19), direction="visible_to_infrared")
    assert decide([comparison(0), other], RULE).decision == "undecided"


def test_a_rejection_names_every_reason_with_its_numbers():
    found = decide(
        [
            comparison(-4.0),
            comparison(-9.0, metric="mAP", data=CHAMPION),
            comparison(0, half=8.0, metric="mAP"),
            comparison(-20.0, cameras=PAIR),
        ],
        RULE,
    )
    assert found.reasons == [
        "is worse, and may be worse by more than 5 points: rank-1, infrared to visible, today's data: "
        "20.0 % to 16.0 %, -4.0 points (-6.0 to -2.0)",
        "is worse by more than 3 points: mAP, infrared to visible, the champion's data: "
        "20.0 % to 11.0 %, -9.0 points (-11.0 to -7.0)",
        "a pair of cameras collapsed: rank-1, infrared to visible, cam5 to cam1, today's data: "
        "20.0 % to 0.0 %, -20.0 points (-22.0 to -18.0)",
        "may be worse by more than 3 points: mAP, infrared to visible, today's data: 20.0 % to 20.0 %, "
        "+0.0 points (-8.0 to +8.0); if the difference stays, about 1067 test people decide it",
    ]


@pytest.mark.parametrize(
    "difference, half, people",
    [
        (0.0, 10.0, 400),  # twice too wide: four times the people
        (-4.0, 8.0, 400),  # sooner seen to be worse than to be within the margin
        (-10.0, 20.0, 400),
        (+5.0, 15.0, 225),
    ],
)
def test_an_interval_that_is_too_wide_says_how_many_people_decide(difference, half, people):
    found = decide([comparison(difference, half=half, people=100)], RULE)
    assert found.decision == "undecided" and f"about {people} test people decide" in found.reasons[0]


def test_what_would_decide_is_said():
    few = decide([comparison(0, people=12)], RULE).reasons[0]
    assert "only 12 test people" in few and "needs 20" in few and "8 others" in few
    wide = decide([comparison(0), comparison(-4, half=5, data=CHAMPION)], RULE).reasons[0]
    assert "gets no more people" in wide
    decayed = decide([comparison(0), comparison(-4, data=BEST)], RULE, "v4").reasons
    assert len(decayed) == 1 and "version v4" in decayed[0] and "`csdn rollback v4`" in decayed[0]


def test_the_champions_data_does_not_lock_a_small_site_out():
    """The first champion was chosen on 6 people. They are never more, so they may not decide for ever."""
    found = decide([comparison(0, people=25), comparison(0, half=30, data=CHAMPION, people=6)], RULE)
    assert found.decision == "promote"
    assert found.reasons[0].endswith("today's data: 20.0 % to 20.0 %, +0.0 points (-2.0 to +2.0)")
    assert "the champion's data has only 6 test people, and 20 are needed" in found.reasons[-1]


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
    assert decide_first([better], [above_chance], RULE) == Decision("promote", ["there is no champion yet"])
    # Worse than CLIP, but not significantly: not mentioned.
    assert decide_first([comparison(-1)], [above_chance], RULE).reasons == ["there is no champion yet"]
    mixed = decide_first([better, worse], [above_chance], RULE)
    assert mixed.decision == "promote"
    assert mixed.reasons[1].startswith("note: surely worse than CLIP as it is: rank-1")
    assert decide_first([worse, worse], [above_chance], RULE).decision == "reject"
    undecided = decide_first([better], [guess], RULE)
    assert undecided.decision == "undecided"
    assert undecided.reasons[1].startswith("cannot be told from chance: mAP")


def test_what_clip_as_it_is_does_better_is_a_note():
    clip, trained = ({"rank1": {"mean": mean}, "mAP": {"mean": 20.0}} for mean in (14.0, 13.9))
    evaluation = {"clip": {"infrared_to_visible": clip}, "trained": {"infrared_to_visible": trained}}
    (note,) = worse_than_clip(evaluation)
    assert note.endswith("rank-1, infrared to visible: 14.0 % to 13.9 %")
    trained["rank1"]["mean"] = None  # no query had a match
    assert worse_than_clip(evaluation) == []


def test_a_first_model_is_rejected_on_enough_people_only():
    worse = comparison(-3, people=19)
    found = decide_first([worse, worse], [comparison(+10, metric="mAP")], RULE)
    assert found.decision == "undecided" and "only 19 test people" in found.reasons[-1]


def test_the_table_fits_a_terminal_and_steers_none():
    pair = comparison(-40.0, champion=100.0, cameras=("\x1b[31mnorth", "south" * 20))
    whole = comparison(-9.9, half=11.1, champion=100.0)
    found = [whole, pair, replace(whole, data=BEST, people=100000)]
    result = as_json(decide(found, RULE, "v999"), "v1000", found, ["a note"], "v999")
    lines = table_lines(result)
    assert lines[0].split() == ["infrared", "to", "visible", "v1000", "candidate", "points", "interval"]
    assert lines[1].split()[-5:] == ["90.1", "-9.9", "-21.0", "to", "+1.2"]
    assert "\x1b" not in "\n".join(lines)
    against = next(n for n, line in enumerate(lines) if "best of the last versions (v999)" in line)
    assert "v999" in lines[against + 1] and "100000 people" in lines[against + 2]
    assert lines[-1] == "- note: a note"
    assert all(len(line) <= 80 for part in lines for line in part.split("\n") if "southsouth" not in line)
