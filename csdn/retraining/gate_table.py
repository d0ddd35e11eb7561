"""metrics/gate.json for people: a table of at most 80 columns, then the decision and its reasons. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill
from typing import Any

from csdn.retraining.gate import METRICS
from csdn.safe import printable

COLUMNS = 80
_DATA = {"today": "today's data", "champion": "champion's data"}
_DECISIONS = {
    "promote": "promote: the newcomer becomes the champion",
    "keep": "keep: the newcomer does not become the champion",
}


def table_lines(result: Mapping[str, Any]) -> list[str]:
    """The figures over all cameras, the pair of cameras that lost most, and the decision with its reasons."""
    lines = [*_overall(result["comparisons"], result["champion"]), _DECISIONS[result["decision"]]]
    for reason in result["reasons"]:
        lines.append(fill(printable(f"- {reason}"), COLUMNS, subsequent_indent="  "))
    return lines


def _overall(comparisons: Sequence[Mapping[str, Any]], champion: str | None) -> Iterator[str]:
    overall = [one for one in comparisons if one["query_camera"] is None]
    for direction in dict.fromkeys(one["direction"] for one in overall):
        what = direction.replace("_", " ")
        yield f"{what:38}{champion:>7}{'newcomer':>9}{'points':>9}{'interval':>16}"
        for one in overall:
            if one["direction"] == direction:
                yield _line(one)
    pairs = [one for one in comparisons if one["query_camera"] is not None]
    if pairs:
        worst = min(pairs, key=lambda one: one["difference"])
        cameras = f"{worst['query_camera']} to {worst['gallery_camera']}"
        count = len({(one["direction"], one["query_camera"], one["gallery_camera"]) for one in pairs})
        yield f"the pair of cameras that lost most, of {count}: {printable(cameras)}"
        yield _line(worst)


def _line(one: Mapping[str, Any]) -> str:
    what = f"  {_DATA[one['data']]}, {one['people']} people"
    interval = f"{one['low']:+.1f} to {one['high']:+.1f}"
    return (
        f"{what:31}{METRICS[one['metric']]:7}{one['champion']:7.1f}{one['newcomer']:9.1f}"
        f"{one['difference']:+9.1f}{interval:>16}"
    )
