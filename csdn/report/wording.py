"""Sentences of the report. Each is a function of the figures it states, and claims no more than they show."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from csdn.data.catalog import MODALITIES
from csdn.evaluation.headline import OPEN_SET_FPIRS, RERANKED, people_needed
from csdn.runtime.sanitize import escape_control_chars

Figures = Mapping[str, Any]  # metrics/evaluation.json

LONGEST = 1000  # characters of a text of the page: names come from outside
NBSP = "\N{NO-BREAK SPACE}"

TEXTS = {"visible": "Visible only", "infrared": "Infrared only", "fused": "Fused by SII"}
METHOD_NAMES = {
    "trained": "Trained",
    RERANKED: "Re-ranked",
    "clip": "CLIP as it is",
    "hog": "HOG-like",
    "chance": "Chance",
}


def shown(value: Any) -> Any:
    """A value for the page, cut if too long: control characters and marks of direction become escapes."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    value = value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…"
    return escape_control_chars(value, keep=NBSP)


def bdi(name: str) -> Markup:
    """A name within a sentence, isolated: a right-to-left name does not reorder the figures beside it."""
    return Markup("<bdi>{}</bdi>").format(shown(name))


def direction_name(direction: str) -> str:
    """infrared_to_visible -> "Infrared → visible"."""
    return direction.replace("_to_", " → ").capitalize()


def percent(value: float | None, digits: int = 1) -> str:
    """A figure in percent, with a no-break space before the sign."""
    return "–" if value is None else f"{value:.{digits}f}{NBSP}%"


def deviation(figure: Mapping[str, float | None]) -> str:
    """The standard deviation of a figure, "± 1.1"; empty where it is not known."""
    return "" if figure["std"] is None else f"±{NBSP}{figure['std']:.1f}"


def with_spread(figure: Mapping[str, float | None]) -> str:
    """A figure with its deviation: "22.4 ± 1.1 %"."""
    if figure["mean"] is None:
        return "–"
    return NBSP.join(filter(None, (f"{figure['mean']:.1f}", deviation(figure), "%")))


def opening(figures: Figures) -> list[str]:
    """The result, a sentence for each direction."""
    return [_found(direction, figures) for direction in figures["counts"]]


def _found(direction: str, figures: Figures) -> str:
    query, gallery = direction.split("_to_")
    rank1 = figures["trained"][direction]["rank1"]
    if rank1["mean"] is None:
        return f"No {query} image has a match among the {gallery} images, so there is no figure."
    article = "An" if query[0] in "aeiou" else "A"
    return (
        f"{article} {query} query has its person at rank 1 in {with_spread(rank1)} of searches among "
        f"{figures['counts'][direction]['gallery']} {gallery} images; "
        f"by chance it would be {with_spread(figures['chance'][direction]['rank1'])}."
    )


def comparison(direction: str, figures: Figures, baseline: str = "clip", figure: str = "rank1") -> str:
    """The gain over a baseline, compared with the standard deviation over the galleries."""
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
    """Whether rank-1 increases in every direction from chance to HOG, CLIP and the trained model."""
    methods = ("chance", "hog", "clip", "trained")
    broken = []
    for direction in figures["counts"]:
        rank1 = {method: figures[method][direction]["rank1"]["mean"] for method in methods}
        if None in rank1.values():
            return ""
        broken += [
            f"{direction_name(direction).lower()}, {_in_text(upper)} {percent(rank1[upper])} "
            f"and {_in_text(lower)} {percent(rank1[lower])}"
            for lower, upper in pairwise(methods)
            if rank1[upper] <= rank1[lower]
        ]
    rising = " < ".join(map(_in_text, methods))
    if broken:
        return f"By rank-1 the order {rising} does not hold: " + "; ".join(broken) + "."
    return f"By rank-1, in every direction: {rising}."


def _in_text(method: str) -> str:
    return METHOD_NAMES[method] if method in ("hog", "clip") else METHOD_NAMES[method].lower()


def pairs_left_out(figures: Figures) -> list[str]:
    """A note for each direction with more pairs of cameras than get figures of their own."""
    return [
        f"{direction_name(direction)}: {rest} more pairs of cameras have no figures of their own; the "
        "pairs with the most people in common have."
        for direction, counts in figures["counts"].items()
        if (rest := counts.get("camera_pairs_left_out"))
    ]


def sampling(figures: Figures) -> list[str]:
    """For each direction whose queries are a sample: the standard errors of the trained model's figures."""
    said = []
    for direction, counts in figures["counts"].items():
        if every := counts.get("sampled_from"):
            errors = [figures["trained"][direction][name]["error"] for name in ("rank1", "mAP")]
            rank1, mean_ap = ("unknown" if one is None else f"{one:.2f} points" for one in errors)
            said.append(
                f"{direction_name(direction)}: as estimates for all {every} queries, the trained model's "
                f"figures have a standard error of {rank1} of rank-1 and {mean_ap} of mAP."
            )
    return said


def interval(figure: Mapping[str, float]) -> str:
    """A figure with the ends of its interval: "5.9 % (3.3 to 10.0)"; "(up to 10.0)" without a low end."""
    low = f"{figure['low']:.1f} to" if figure["low"] else "up to"
    return f"{percent(figure['value'])} ({low} {figure['high']:.1f})"


def open_set(figures: Figures) -> list[str]:
    """For each direction the DIR at the lowest FPIR of the table, and which FPIR has too few people."""
    said = []
    for direction, of in figures["open_set"].items():
        known = [name for name in OPEN_SET_FPIRS if name in of]
        name = direction_name(direction)
        if not of["mated_people"]:
            said.append(f"{name}: no query has a match in the gallery, so there is no DIR.")
            continue
        if known:
            fpir = percent(100 * OPEN_SET_FPIRS[known[0]], 0)
            said.append(
                f"{name}: with the threshold for an FPIR of {fpir}, {interval(of[known[0]]['dir'])} of the "
                "searches for a person in the gallery have that person at rank 1, at or above the threshold."
            )
        said += [
            f"{name}: no figure at an FPIR of {percent(100 * fpir, 0)}, which takes {people_needed(fpir)} "
            f"test people; there are {of['people']}."
            for key, fpir in OPEN_SET_FPIRS.items()
            if key not in of
        ]
    return said


def reranking(figures: Figures) -> list[str]:
    """What the rows of the method `re-ranked` are, if there are any."""
    if RERANKED not in figures:
        return []
    return [
        "Re-ranked: the trained model after k-reciprocal re-ranking, which compares all queries and the "
        "whole gallery with each other; compare such figures with re-ranked ones alone"
    ]


def separation(areas: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A sentence for each kind of pair; areas: separation 0..1 (Pairs.area) by kind and method."""
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


def naming_words(naming: Mapping[str, float], people: int) -> list[str]:
    """Sentences on the six figures, chance with `people` texts, and the effect of SII."""
    new = naming.get("new_people")
    if new == 0:
        return ["No identity is new: the texts are those of the champion that training started from."]
    cross = (
        f"A text learnt from visible images alone names {percent(naming['visible_names_infrared'])} of the "
        f"infrared images; one learnt from infrared images alone names "
        f"{percent(naming['infrared_names_visible'])} of the visible ones. "
        f"With {people} texts, chance would name {percent(100 / people)}."
    )
    changes = [_text_change(naming, modality.value) for modality in MODALITIES]
    sentences = [cross, f"Fusing the two (SII) {changes[0]}, and {changes[1]}."]
    if new is None:
        return sentences
    return [
        f"The images are those of the {new} new identities; the texts of all others are the champion's.",
        *sentences,
    ]


def _text_change(naming: Mapping[str, float], modality: str) -> str:
    """The fused text compared with the better one of the two."""
    fused = naming[f"fused_names_{modality}"]
    better = max(("visible", "infrared"), key=lambda text: naming[f"{text}_names_{modality}"])
    gain = fused - naming[f"{better}_names_{modality}"]
    than = f"the better of the two alone, {TEXTS[better].lower()}"
    if round(abs(gain), 1) == 0:
        return f"names as many {modality} images as {than} ({percent(fused)})"
    more = "more" if gain > 0 else "fewer"
    return f"names {abs(gain):.1f} points {more} of the {modality} images than {than} ({percent(fused)})"
