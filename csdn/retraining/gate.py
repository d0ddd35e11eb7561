"""The rule by which a candidate becomes the champion: comparisons in, a decision with its reasons out.

A non-inferiority test. A candidate is promoted if, in every direction, by rank-1 and by mAP, on today's data
and on the data that the champion was chosen on, the lower end of the confidence interval of its difference is
not below minus the metric's margin. And no pair of cameras may collapse: if one has lost `gate.max_pair_drop`
points or more, with an interval that is wholly below 0, the candidate is rejected, however good the rest is.

All functions are pure. `as_json` is what metrics/gate.json holds, `table_lines` what people read of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

from csdn.runtime.sanitize import escape_control_chars

if TYPE_CHECKING:
    from csdn.params import GateParams


PROMOTE, REJECT, UNDECIDED = "promote", "reject", "undecided"
TODAY, CHAMPION = "today", "champion"  # the data of a comparison
METRICS = {"rank1": "rank-1", "mAP": "mAP"}
DATA = {TODAY: "today's data", CHAMPION: "the champion's data"}


@dataclass(frozen=True)
class Comparison:
    """One metric of both models on the same queries and galleries, in percent, and the difference in points.

    low, high: the confidence interval of the difference. The cameras are None in a comparison over all
    cameras. metrics/gate.json has the fields as its keys.
    """

    data: str  # TODAY | CHAMPION
    direction: str  # as "infrared_to_visible"
    metric: str  # a key of METRICS
    champion: float
    candidate: float
    difference: float
    low: float
    high: float
    queries: int  # of the first trial
    people: int
    query_camera: str | None = None
    gallery_camera: str | None = None

    @property
    def of_pair(self) -> bool:
        return self.query_camera is not None

    def __str__(self) -> str:
        """As in "rank-1, infrared to visible, cam5 to cam1, today's data: 21.3 % to 18.0 %, -3.3 ..."."""
        cameras = (
            escape_control_chars(f", {self.query_camera} to {self.gallery_camera}") if self.of_pair else ""
        )
        return (
            f"{METRICS[self.metric]}, {self.direction.replace('_', ' ')}{cameras}, {DATA[self.data]}: "
            f"{self.champion:.1f} % to {self.candidate:.1f} %, {self.difference:+.1f} points "
            f"({self.low:+.1f} to {self.high:+.1f})"
        )


@dataclass(frozen=True)
class Decision:
    """PROMOTE or REJECT, and at least one reason: a sentence with its numbers."""

    decision: str
    reasons: list[str]


def decide(comparisons: Sequence[Comparison], rule: GateParams) -> Decision:
    """Whether the candidate replaces the champion; a rejection names every reason, not the first alone.

    Raises ValueError if no comparison is over all cameras of today's data: the candidate would pass untested.
    """
    overall = [one for one in comparisons if not one.of_pair]
    if not any(one.data == TODAY for one in overall):
        raise ValueError("there is no comparison on today's data")
    against = [*_too_few(overall, rule), *_worse(overall, rule), *_collapsed(comparisons, rule)]
    if against:
        return Decision(REJECT, against)
    nearest = min(overall, key=lambda one: one.low + rule.margin_of(one.metric))
    pairs = [one for one in comparisons if one.of_pair and one.people >= rule.min_people]
    return Decision(
        PROMOTE,
        [
            f"not worse by more than {rule.rank1_margin:g} points of rank-1 and {rule.map_margin:g} of mAP; "
            f"nearest to it: {nearest}",
            f"no pair of cameras collapsed, of {_pairs(pairs)} with {rule.min_people} people or more",
        ],
    )


def decide_first(against_clip: Sequence[Comparison], against_chance: Sequence[Comparison]) -> Decision:
    """Whether a candidate becomes the first champion; it is compared with CLIP as it is, and with chance.

    The first model need not be better than CLIP in every metric: a later one that is not worse replaces it.
    But retraining would start from it, so a candidate is rejected if it is significantly worse than CLIP in
    every metric, or if its mAP is not significantly above chance.
    """
    overall = [one for one in against_clip if not one.of_pair]
    worse = [f"surely worse than CLIP as it is: {one}" for one in overall if one.high < 0]
    no_better_than_chance = [
        f"cannot be told from chance: {one}"
        for one in against_chance
        if not one.of_pair and one.metric == "mAP" and one.low <= 0
    ]
    if no_better_than_chance or len(worse) == len(overall):
        reasons = ["there is no champion yet, and this model cannot be one", *worse, *no_better_than_chance]
        return Decision(REJECT, reasons)
    return Decision(PROMOTE, ["there is no champion yet", *worse])


def _pairs(comparisons: Iterable[Comparison]) -> int:
    """The number of pairs of cameras: each pair has several metrics, and may be in both data sets."""
    return len({(one.direction, one.query_camera, one.gallery_camera) for one in comparisons})


def _too_few(overall: Iterable[Comparison], rule: GateParams) -> list[str]:
    fewest = min((one for one in overall if one.data == TODAY), key=lambda one: one.people)
    if fewest.people >= rule.min_people:
        return []
    return [
        f"only {fewest.people} test people, {fewest.direction.replace('_', ' ')}: the rule needs "
        f"{rule.min_people} (gate.min_people); add images of others, or raise data.test_percent (or "
        "evaluation.max_queries, if it is set: the people of its queries count)"
    ]


def _worse(overall: Iterable[Comparison], rule: GateParams) -> list[str]:
    found = []
    for one in overall:
        margin = rule.margin_of(one.metric)
        if one.low < -margin:
            sure = "is" if one.high < -margin else "may be"
            found.append(f"{sure} worse by more than {margin:g} points: {one}")
    return found


def _collapsed(comparisons: Iterable[Comparison], rule: GateParams) -> list[str]:
    return [
        f"a pair of cameras collapsed: {one}"
        for one in comparisons
        if one.of_pair
        and one.people >= rule.min_people
        and one.difference <= -rule.max_pair_drop
        and one.high < 0
    ]


def as_json(
    decision: Decision, champion: str | None, comparisons: Iterable[Comparison], notes: Iterable[str] = ()
) -> dict[str, Any]:
    """The content of metrics/gate.json; `notes` are added to the reasons though they decided nothing."""
    return {
        "decision": decision.decision,
        "reasons": [*decision.reasons, *notes],
        "champion": champion,
        "comparisons": [asdict(one) for one in comparisons],
    }


# metrics/gate.json as text: a table of at most 80 columns, then the decision and its reasons.

COLUMNS = 80
_DATA_SETS = {TODAY: "today's data", CHAMPION: "champion's data"}
_DECISIONS = {
    PROMOTE: "promote: the candidate becomes the champion",
    REJECT: "reject: the candidate does not become the champion",
    UNDECIDED: "undecided: the champion stays until there is more evidence",
}


def table_lines(result: Mapping[str, Any]) -> list[str]:
    """The metrics over all cameras, the pair of cameras that lost most, and the decision with its reasons."""
    lines = [*_overall(result["comparisons"], result["champion"]), _DECISIONS[result["decision"]]]
    for reason in result["reasons"]:
        lines.append(fill(escape_control_chars(f"- {reason}"), COLUMNS, subsequent_indent="  "))
    return lines


def _overall(comparisons: Sequence[Mapping[str, Any]], champion: str | None) -> Iterator[str]:
    overall = [one for one in comparisons if one["query_camera"] is None]
    for direction in dict.fromkeys(one["direction"] for one in overall):
        what = direction.replace("_", " ")
        yield f"{what:38}{champion:>7}{'candidate':>10}{'points':>8}{'interval':>16}"
        for one in overall:
            if one["direction"] == direction:
                yield _line(one)
    pairs = [one for one in comparisons if one["query_camera"] is not None]
    if pairs:
        worst = min(pairs, key=lambda one: one["difference"])
        cameras = f"{worst['query_camera']} to {worst['gallery_camera']}"
        count = len({(one["direction"], one["query_camera"], one["gallery_camera"]) for one in pairs})
        yield f"the pair of cameras that lost most, of {count}: {escape_control_chars(cameras)}"
        yield _line(worst)


def _line(one: Mapping[str, Any]) -> str:
    what = f"  {_DATA_SETS[one['data']]}, {one['people']} people"
    interval = f"{one['low']:+.1f} to {one['high']:+.1f}"
    return (
        f"{what:31}{METRICS[one['metric']]:7}{one['champion']:7.1f}{one['candidate']:10.1f}"
        f"{one['difference']:+8.1f}{interval:>16}"
    )
