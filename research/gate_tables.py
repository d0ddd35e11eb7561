"""The decisions of the gate on many candidates, as the tables of docs/gate.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from csdn.params import GateParams
from csdn.retraining.gate import CHAMPION, METRICS, PROMOTE, Comparison, decide

MARGINS = ((2.0, 2.0), (3.0, 3.0), (4.0, 3.0), (5.0, 2.0), (5.0, 3.0), (5.0, 5.0), (6.0, 4.0))  # rank-1, mAP


class Judged(NamedTuple):
    """One candidate compared with one champion: its kind, and every comparison."""

    kind: str
    comparisons: list[Comparison]


def read(kind: str, result: Mapping[str, Any]) -> Judged:
    return Judged(kind, [Comparison(**one) for one in result["comparisons"]])


def tables(judged: Sequence[Judged], rule: GateParams) -> Iterator[str]:
    """Lines: differences and widths of intervals, rejections by margin, and the losses of pairs of cameras.

    The first and the last table are on the champion's data, whose test people are in no later drop.
    """
    kinds = list(dict.fromkeys(one.kind for one in judged))
    yield "| candidate | figure | difference, mean (lowest to highest) | half of the interval, mean |"
    yield "|---|---|---|---|"
    for kind in kinds:
        for direction, metric in _figures(judged):
            found = list(_overall(judged, kind, direction, metric))
            differences = [one.difference for one in found]
            ends = f"{min(differences):+.1f} to {max(differences):+.1f}"
            half = statistics.fmean((one.high - one.low) / 2 for one in found)
            yield (
                f"| {kind} | {direction.replace('_', ' ')}, {METRICS[metric]} "
                f"| {statistics.fmean(differences):+.1f} ({ends}) | {half:.1f} |"
            )
    yield ""
    yield (
        "| candidate | compared | "
        + " | ".join(f"{rank1:g} / {mean_ap:g}" for rank1, mean_ap in MARGINS)
        + " |"
    )
    yield "|---|---|" + "---|" * len(MARGINS)
    for kind in kinds:
        of_kind = [one.comparisons for one in judged if one.kind == kind]
        rules = [rule.model_copy(update={"rank1_margin": one, "map_margin": two}) for one, two in MARGINS]
        rejected = [sum(decide(one, each).decision != PROMOTE for one in of_kind) for each in rules]
        yield f"| {kind} | {len(of_kind)} | " + " | ".join(f"{count} rejected" for count in rejected) + " |"
    yield ""
    yield "| candidate | pairs compared | lowest differences of pairs | their intervals, half, mean |"
    yield "|---|---|---|---|"
    for kind in kinds:
        pairs = [
            one
            for each in judged
            if each.kind == kind
            for one in each.comparisons
            if one.of_pair and one.data == CHAMPION
        ]
        lowest = sorted(one.difference for one in pairs)[:5]
        half = statistics.fmean((one.high - one.low) / 2 for one in pairs)
        yield f"| {kind} | {len(pairs)} | {', '.join(f'{one:+.1f}' for one in lowest)} | {half:.1f} |"


def _figures(judged: Sequence[Judged]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((one.direction, one.metric) for one in judged[0].comparisons))


def _overall(judged: Sequence[Judged], kind: str, direction: str, metric: str) -> Iterator[Comparison]:
    for each in judged:
        for one in each.comparisons:
            same = (one.direction, one.metric, one.data) == (direction, metric, CHAMPION)
            if each.kind == kind and same and not one.of_pair:
                yield one
