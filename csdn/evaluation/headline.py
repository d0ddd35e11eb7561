"""Summaries of metrics/evaluation.json: for a terminal, and for `dvc metrics` and `dvc exp`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

SHOWN = {"rank1": "rank-1", "rank10": "rank-10", "mAP": "mAP", "mINP": "mINP"}
METHODS = ("trained", "clip", "hog", "chance")
OPEN_SET_FPIRS = {"fpir_10": 0.10, "fpir_1": 0.01}  # entries of `open_set`, where the people are enough
RERANKED = "re-ranked"  # one more method, with evaluation.rerank: `trained` after csdn.evaluation.rerank
SHOWN_METHODS = {"trained": "trained", RERANKED: RERANKED, "clip": "CLIP", "chance": "chance"}


def headline(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that experiments are compared by: means of the trained model, in percent, and the people of
    the queries.

    Names are short, as they are the column heads of `dvc exp show`: `ir_to_vis.rank1`.
    """
    short = {
        _short(direction): {
            name: _rounded(figures["trained"][direction][name]["mean"]) for name in ("rank1", "mAP")
        }
        for direction in figures["counts"]
    }
    return {**short, "test_people": max(count["people"] for count in figures["counts"].values())}


def _short(direction: str) -> str:
    return direction.replace("infrared", "ir").replace("visible", "vis")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def one_line(figures: Mapping[str, Any]) -> str:
    """Rank-1 of the trained model in each direction, as in "rank-1 23.1 % infrared to visible"."""
    trained = {direction: figures["trained"][direction]["rank1"]["mean"] for direction in figures["counts"]}
    found = [
        f"{'-' if mean is None else f'{mean:.1f} %'} {direction.replace('_', ' ')}"
        for direction, mean in trained.items()
    ]
    return f"rank-1 {', '.join(found)}"


def table_lines(figures: Mapping[str, Any], methods: Mapping[str, str] = SHOWN_METHODS) -> list[str]:
    """A table of some methods (key -> name shown), in percent, under 80 columns wide."""
    lines = []
    for direction in figures["counts"]:
        lines.append(f"{direction.replace('_', ' '):20}" + "".join(f"{name:>15}" for name in SHOWN.values()))
        for method, name in methods.items():
            if method == RERANKED and method not in figures:
                continue
            cells = [_cell(figures[method][direction][figure]) for figure in SHOWN]
            lines.append(f"  {name:18}" + "".join(f"{cell:>15}" for cell in cells))
    return lines


def _cell(figure: Mapping[str, float | None]) -> str:
    if figure["mean"] is None:
        return "-"
    return f"{figure['mean']:.2f}" + ("" if figure["std"] is None else f" ± {figure['std']:.2f}")


def open_set_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """A line for each direction: "infrared to visible: DIR 5.9 % (3.3 to 10.0) at FPIR 10 %"."""
    for direction, of in figures["open_set"].items():
        found = [
            f"{dir_in_words(of[name]['dir'])} at FPIR {100 * fpir:g} %"
            for name, fpir in OPEN_SET_FPIRS.items()
            if name in of
        ]
        highest = max(OPEN_SET_FPIRS.values())
        missing = f"no DIR at FPIR {100 * highest:g} %, which takes {people_needed(highest)} test people"
        if not of["mated_people"]:
            missing = "no DIR, as no query has a match in the gallery"
        yield f"{direction.replace('_', ' ')}: {', '.join(found) or missing}"


def dir_in_words(figure: Mapping[str, float]) -> str:
    """A DIR with its interval, "DIR 5.9 % (3.3 to 10.0)"."""
    return f"DIR {figure['value']:.1f} % ({figure['low']:.1f} to {figure['high']:.1f})"


def people_needed(fpir: float) -> int:
    """The fewest people whose unmated searches support an FPIR (0..1), by the rule of three."""
    return math.ceil(3 / fpir - 1e-9)


def notes(counts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader of the figures must know about the counts; directions with the same note share a line."""
    said: dict[str, list[str]] = {}
    for direction, count in counts.items():
        for note in _notes(count):
            said.setdefault(note, []).append(direction.replace("_", " "))
    return [f"{' and '.join(directions)}: {note}" for note, directions in said.items()]


def _notes(count: Mapping[str, Any]) -> Iterator[str]:
    for what, published in count.get("published", {}).items():
        if count[what] != published:
            yield f"WARNING: {count[what]} {what.replace('_', ' ')}, the published experiment has {published}"
    if every := count.get("sampled_from"):
        yield f"figures of {count['queries']} of {every} queries, drawn at random (evaluation.max_queries)"
    left_out = count["queries"] - count["valid_queries"]
    if not count["valid_queries"]:
        yield "no query has a right image to find, so there are no figures"
    elif left_out:
        yield f"{left_out} of {count['queries']} queries have no match in the gallery and are left out"
    if count["excluded_pairs"] == 0:
        yield "no gallery image is of a query's own person and camera, so none is excluded"
    if rest := count.get("camera_pairs_left_out"):
        yield f"{rest} pairs of cameras have no figures of their own; the pairs with the most people have"
