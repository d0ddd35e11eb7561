"""Sentences of the report, each a function of the numbers it states: it says no more than was measured."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from csdn.runtime.sanitize import escape_control_chars

Figures = Mapping[str, Any]  # metrics/evaluation.json

NBSP = "\N{NO-BREAK SPACE}"

METHOD_NAMES = {
    "trained": "Trained",
    "clip": "CLIP as it is",
    "hog": "HOG-like",
    "chance": "Chance",
}


def shown(value: Any) -> Any:
    """A value as the page has it: characters that do not print, or that turn what follows, as escapes."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return escape_control_chars(value, keep=NBSP)


def bdi(name: str) -> Markup:
    """A name within a sentence: its direction of writing does not reorder the figures beside it."""
    return Markup("<bdi>{}</bdi>").format(shown(name))


def direction_name(direction: str) -> str:
    """infrared_to_visible -> "Infrared → visible"."""
    return direction.replace("_to_", " → ").capitalize()


def percent(value: float | None, digits: int = 1) -> str:
    """A figure with its sign, never broken over two lines."""
    return "–" if value is None else f"{value:.{digits}f}{NBSP}%"


def deviation(figure: Mapping[str, float | None]) -> str:
    """The deviation of a figure, "± 1.1"; empty where it is not known."""
    return "" if figure["std"] is None else f"±{NBSP}{figure['std']:.1f}"


def with_spread(figure: Mapping[str, float | None]) -> str:
    """A figure with its deviation: "22.4 ± 1.1 %"."""
    if figure["mean"] is None:
        return "–"
    return NBSP.join(filter(None, (f"{figure['mean']:.1f}", deviation(figure), "%")))


def opening(figures: Figures) -> list[str]:
    """What was found, a sentence for each direction."""
    return [_found(direction, figures) for direction in figures["counts"]]


def _found(direction: str, figures: Figures) -> str:
    asking, answering = direction.split("_to_")
    rank1 = figures["trained"][direction]["rank1"]
    if rank1["mean"] is None:
        return f"No {asking} image has a right {answering} image to find, so there is no figure."
    article = "An" if asking[0] in "aeiou" else "A"
    return (
        f"{article} {asking} image finds its person first in {with_spread(rank1)} of searches among "
        f"{figures['counts'][direction]['gallery']} {answering} images; "
        f"chance finds {with_spread(figures['chance'][direction]['rank1'])}."
    )


def comparison(direction: str, figures: Figures, baseline: str = "clip", figure: str = "rank1") -> str:
    """Whether training did better than a baseline, measured by the spread over the galleries."""
    trained, other = (figures[method][direction][figure] for method in ("trained", baseline))
    if trained["mean"] is None or other["mean"] is None:
        return ""
    gain = trained["mean"] - other["mean"]
    spread = max(trained["std"] or 0.0, other["std"] or 0.0)
    name = METHOD_NAMES[baseline]
    if abs(gain) <= spread:
        return f"{name} and the trained model differ by less than the spread over the galleries."
    more = "more" if gain > 0 else "less"
    return f"{abs(gain):.1f} points {more} than {name}."


def order(figures: Figures) -> str:
    """Whether rank-1 rises in every direction from chance over HOG and CLIP to the trained model."""
    ladder = ("chance", "hog", "clip", "trained")
    broken = []
    for direction in figures["counts"]:
        rank1 = {method: figures[method][direction]["rank1"]["mean"] for method in ladder}
        if None in rank1.values():
            return ""
        broken += [
            f"{direction_name(direction).lower()}, {_in_text(upper)} {percent(rank1[upper])} "
            f"and {_in_text(lower)} {percent(rank1[lower])}"
            for lower, upper in pairwise(ladder)
            if rank1[upper] <= rank1[lower]
        ]
    rising = " < ".join(map(_in_text, ladder))
    if broken:
        return f"By rank-1 the order {rising} does not hold: " + "; ".join(broken) + "."
    return f"By rank-1, in every direction: {rising}."


def _in_text(method: str) -> str:
    return METHOD_NAMES[method] if method in ("hog", "clip") else METHOD_NAMES[method].lower()


def pairs_left_out(figures: Figures) -> list[str]:
    """Which directions have more pairs of cameras than get figures of their own."""
    return [
        f"{direction_name(direction)}: {rest} more pairs of cameras have no figures of their own; those with "
        "the most people in common have."
        for direction, counts in figures["counts"].items()
        if (rest := counts.get("camera_pairs_left_out"))
    ]


def separation(areas: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A sentence for each kind of pair; areas: share of right orders 0..1, by kind and method."""
    return [
        f"{kind}: separation {percent(100 * of['clip'])} before training, {percent(100 * of['trained'])} "
        f"after ({100 * (of['trained'] - of['clip']):+.1f} points)."
        for kind, of in areas.items()
    ]


def variance(before: tuple[float, float], after: tuple[float, float]) -> str:
    """Shares of variance between people and between modalities (0..1), before and after training."""
    people, modalities = (
        f"from {percent(100 * before[which], 0)} to {percent(100 * after[which], 0)}" for which in (0, 1)
    )
    return (
        f"With training, the share of the variance (in all dimensions) that lies between these people goes "
        f"{people}, and the share between the two modalities {modalities}."
    )
