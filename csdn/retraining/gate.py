"""The rule by which a candidate becomes the champion: comparisons in, a decision with its reasons out.

A non-inferiority test with three outcomes, each by the confidence intervals of the differences between the
two models, in every direction, by rank-1 and by mAP, on today's data and on the champion's:

    reject     evidence of harm: a metric whose interval reaches below minus its margin and that is surely
               worse, or a pair of cameras that collapsed (lost `gate.max_pair_drop` points or more, with an
               interval wholly below 0)
    undecided  no evidence: fewer than `gate.min_people` test people, an interval that reaches below minus the
               margin though the metric may be no worse, or one of the last versions that is better
    promote    no interval reaches below minus the margin

Of several intervals of an equally good candidate one easily lies wholly below 0. So "surely worse" is at a
confidence that is corrected for the number of comparisons (Bonferroni): all of them are wrong in at most
(1 - `gate.confidence`) / 2 of all cases. A data set with fewer than `gate.min_people` test people is no
evidence, neither for a candidate nor against.
All functions are pure. `as_json` is what metrics/gate.json holds, `table_lines` what people read of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from textwrap import fill
from typing import TYPE_CHECKING, Any

from csdn.runtime.sanitize import escape_control_chars

if TYPE_CHECKING:
    from csdn.params import GateParams


PROMOTE, REJECT, UNDECIDED = "promote", "reject", "undecided"
# The data of a comparison. BEST: today's data, with the best of the last versions in the champion's place.
TODAY, CHAMPION, BEST = "today", "champion", "best"
METRICS = {"rank1": "rank-1", "mAP": "mAP"}
DATA = {TODAY: "today's data", CHAMPION: "the champion's data", BEST: "today's data, with the last versions"}


@dataclass(frozen=True)
class Comparison:
    """One metric of both models on the same queries and galleries, in percent, and the difference in points.

    low, high: the confidence interval of the difference. The cameras are None in a comparison over all
    cameras. metrics/gate.json has the fields as its keys.
    """

    data: str  # TODAY | CHAMPION | BEST
    direction: str  # as "infrared_to_visible"
    metric: str  # a key of METRICS
    champion: float  # of the champion; with BEST, of the best of the last versions
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
            f"{METRICS[self.metric]}, {in_words(self.direction)}{cameras}, {DATA[self.data]}: "
            f"{self.champion:.1f} % to {self.candidate:.1f} %, {self.difference:+.1f} points "
            f"({self.low:+.1f} to {self.high:+.1f})"
        )


@dataclass(frozen=True)
class Decision:
    """PROMOTE, REJECT or UNDECIDED, and at least one reason: a sentence with its numbers."""

    decision: str
    reasons: list[str]


def decide(comparisons: Sequence[Comparison], rule: GateParams, best: str | None = None) -> Decision:
    """Whether the candidate replaces the champion; every reason against it is named, not the first alone.

    best: the version in the champion's place of the comparisons on BEST. Raises ValueError if no comparison
    is over all cameras of today's data: the candidate would pass untested.
    """
    overall = [one for one in comparisons if not one.of_pair]
    if not any(one.data == TODAY for one in overall):
        raise ValueError("there is no comparison on today's data")
    judged = [one for one in overall if fewest_people(one.data, overall) >= rule.min_people]
    factor = _correction(sum(one.data != BEST for one in judged), rule)
    below = [one for one in judged if one.low < -rule.margin_of(one.metric)]
    of_champion = [one for one in below if one.data != BEST]
    harm = [_harm(one, rule) for one in of_champion if _surely_worse(one, factor)]
    harm += _collapsed(comparisons, rule)
    wide = [_wide(one, rule, factor) for one in of_champion if not _surely_worse(one, factor)]
    decayed = [_decayed(one, rule, best) for one in below if one.data == BEST]
    notes = _notes(_not_judged(overall, rule))
    if harm:
        return Decision(REJECT, [*harm, *wide, *decayed, *notes])
    against = [*_too_few(overall, rule), *wide, *decayed]
    if against:
        return Decision(UNDECIDED, [*against, *notes])
    nearest = min(judged, key=lambda one: one.low + rule.margin_of(one.metric))
    pairs = [one for one in comparisons if one.of_pair and one.people >= rule.min_people]
    return Decision(
        PROMOTE,
        [
            f"not worse by more than {rule.rank1_margin:g} points of rank-1 and {rule.map_margin:g} of mAP; "
            f"nearest to it: {nearest}",
            f"no pair of cameras collapsed, of {_pairs(pairs)} with {rule.min_people} people or more",
            *notes,
        ],
    )


def decide_first(
    against_clip: Sequence[Comparison], against_chance: Sequence[Comparison], rule: GateParams
) -> Decision:
    """Whether a candidate becomes the first champion; it is compared with CLIP as it is, and with chance.

    The first model need not be better than CLIP in every metric: a later one that is not worse replaces it.
    But retraining would start from it. So a candidate that is significantly worse than CLIP in every metric
    is rejected (with fewer than `gate.min_people` test people it is undecided), and one whose mAP is not
    significantly above chance is undecided.
    """
    overall = [one for one in against_clip if not one.of_pair]
    worse = [f"surely worse than CLIP as it is: {one}" for one in overall if one.high < 0]
    no_better_than_chance = [
        f"cannot be told from chance: {one}"
        for one in against_chance
        if not one.of_pair and one.metric == "mAP" and one.low <= 0
    ]
    none = "there is no champion yet"
    if len(worse) < len(overall) and not no_better_than_chance:
        return Decision(PROMOTE, [none, *_notes(worse)])
    reasons = [f"{none}, and this model cannot be one", *worse, *no_better_than_chance]
    too_few = _too_few(overall, rule)
    if len(worse) == len(overall) and not too_few:
        return Decision(REJECT, reasons)
    return Decision(UNDECIDED, [*reasons, *too_few])


def worse_than_clip(evaluation: Mapping[str, Any]) -> list[str]:
    """Notes on what CLIP without fine-tuning does better, by the content of metrics/evaluation.json."""
    means = [
        (f"{METRICS[metric]}, {in_words(direction)}", *(one[metric]["mean"] for one in models))
        for direction in evaluation["clip"]
        for models in [(evaluation["clip"][direction], evaluation["trained"][direction])]
        for metric in METRICS
    ]
    return [
        f"worse than CLIP as it is, in metrics/evaluation.json: {what}: {clip:.1f} % to {trained:.1f} %"
        for what, clip, trained in means
        if clip is not None and trained is not None and trained < clip
    ]


def _notes(texts: Iterable[str]) -> list[str]:
    """Texts among the reasons that decided nothing."""
    return [f"note: {text}" for text in texts]


def fewest_people(data: str, overall: Iterable[Comparison]) -> int:
    """The test people of a data set: of its direction that has the fewest."""
    return min((one.people for one in overall if one.data == data), default=0)


def in_words(direction: str) -> str:
    return direction.replace("_", " ")


def _pairs(comparisons: Iterable[Comparison]) -> int:
    """The number of pairs of cameras: each pair has several metrics, and may be in both data sets."""
    return len({(one.direction, one.query_camera, one.gallery_camera) for one in comparisons})


def _correction(comparisons: int, rule: GateParams) -> float:
    """How much wider than at `gate.confidence` an interval is at the confidence corrected for so many.

    As for a normal distribution.
    """
    tail, quantile = (1 - rule.confidence) / 2, NormalDist().inv_cdf
    return quantile(1 - tail / max(1, comparisons)) / quantile(1 - tail)


def _surely_worse(one: Comparison, factor: float) -> bool:
    return one.difference + factor * (one.high - one.difference) < 0


def _harm(one: Comparison, rule: GateParams) -> str:
    margin = rule.margin_of(one.metric)
    sure = "is" if one.high < -margin else "is worse, and may be"
    return f"{sure} worse by more than {margin:g} points: {one}"


def _wide(one: Comparison, rule: GateParams, factor: float) -> str:
    """An interval that reaches below minus the margin, and how many people would decide it."""
    margin, advice = rule.margin_of(one.metric), "more test people decide it"
    if one.data == CHAMPION:
        advice = "this data gets no more people; the next candidate is compared on it again"
    elif people := _people_to_decide(one, margin, factor):
        advice = f"if the difference stays, about {people} test people decide it"
    return f"may be worse by more than {margin:g} points: {one}; {advice}"


def _people_to_decide(one: Comparison, margin: float, factor: float) -> int | None:
    """With how many test people the interval would lie above minus the margin, or the metric be surely worse.

    An interval narrows with the square root of the number of people. None: with no number.
    """
    narrower = []
    if one.difference > -margin:
        narrower.append((one.difference - one.low) / (one.difference + margin))
    if one.difference < 0:
        narrower.append(factor * (one.high - one.difference) / -one.difference)
    return math.ceil(one.people * min(narrower) ** 2) if narrower else None


def _decayed(one: Comparison, rule: GateParams, best: str | None) -> str:
    return (
        f"may be worse than version {best}, the best of the last ones, by more than "
        f"{rule.margin_of(one.metric):g} points: {one}; if the champion is too, `csdn rollback {best}` makes "
        "that version the champion again"
    )


def _too_few(overall: Iterable[Comparison], rule: GateParams) -> list[str]:
    fewest = min((one for one in overall if one.data == TODAY), key=lambda one: one.people)
    if fewest.people >= rule.min_people:
        return []
    return [
        f"only {fewest.people} test people, {in_words(fewest.direction)}: a decision needs "
        f"{rule.min_people} (gate.min_people); add images of {rule.min_people - fewest.people} others, or "
        "raise data.test_percent (or evaluation.max_queries, if it is set: the people of its queries count)"
    ]


def _not_judged(overall: Sequence[Comparison], rule: GateParams) -> list[str]:
    """Of the champion's data with too few people: it gets no more, so waiting for them would be for ever."""
    count = fewest_people(CHAMPION, overall)
    if not 0 < count < rule.min_people:
        return []
    return [
        f"{DATA[CHAMPION]} has only {count} test people, and {rule.min_people} are needed (gate.min_people): "
        "the candidate is not judged by it"
    ]


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
    decision: Decision,
    champion: str | None,
    comparisons: Iterable[Comparison],
    notes: Iterable[str] = (),
    best: str | None = None,
) -> dict[str, Any]:
    """The content of metrics/gate.json; `notes` are added to the reasons though they decided nothing.

    best: the version that the comparisons on BEST are with.
    """
    return {
        "decision": decision.decision,
        "reasons": [*decision.reasons, *_notes(notes)],
        "champion": champion,
        "best": best,
        "comparisons": [asdict(one) for one in comparisons],
    }


# metrics/gate.json as text: a table of at most 80 columns, then the decision and its reasons.

COLUMNS = 80
_DATA_SETS = {TODAY: "today's data", CHAMPION: "champion's data", BEST: "today's data"}
_DECISIONS = {
    PROMOTE: "promote: the candidate becomes the champion",
    REJECT: "reject: the candidate does not become the champion",
    UNDECIDED: "undecided: the champion stays, and the drops stay accepted",
}


def table_lines(result: Mapping[str, Any]) -> list[str]:
    """The metrics over all cameras, the pair of cameras that lost most, and the decision with its reasons."""
    comparisons = result["comparisons"]
    overall = [one for one in comparisons if one["query_camera"] is None]
    lines = [
        *_overall([one for one in overall if one["data"] != BEST], result["champion"]),
        *_worst_pair([one for one in comparisons if one["query_camera"] is not None]),
        *_against_best([one for one in overall if one["data"] == BEST], result["best"]),
        _DECISIONS[result["decision"]],
    ]
    for reason in result["reasons"]:
        lines.append(fill(escape_control_chars(f"- {reason}"), COLUMNS, subsequent_indent="  "))
    return lines


def _overall(overall: Sequence[Mapping[str, Any]], version: str | None) -> Iterator[str]:
    for direction in dict.fromkeys(one["direction"] for one in overall):
        yield f"{in_words(direction):38}{version:>7}{'candidate':>10}{'points':>8}{'interval':>16}"
        for one in overall:
            if one["direction"] == direction:
                yield _line(one)


def _against_best(overall: Sequence[Mapping[str, Any]], version: str | None) -> Iterator[str]:
    if overall:
        yield f"today's data, against the best of the last versions ({version}):"
        yield from _overall(overall, version)


def _worst_pair(pairs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
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
