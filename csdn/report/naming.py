"""How well the texts name training images, and what fusing them (SII) changed, in bars and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from csdn.report.words import percent

TEXTS = {"visible": "Visible only", "infrared": "Infrared only", "fused": "Fused by SII"}
MODALITIES = ("visible", "infrared")


@dataclass(frozen=True)
class NamingBars:
    """One modality's images: (text's key, its name, percent named, as text)."""

    modality: str
    rows: list[tuple[str, str, float, str]]


def naming_bars(naming: Mapping[str, float]) -> list[NamingBars]:
    """How often the text most like an image is its person's own, percent of each modality's images.

    No bars where stage 1 saw no image: nobody was new, and training goes on from a champion.
    """
    if naming.get("new_people") == 0:
        return []
    return [
        NamingBars(
            f"{modality.capitalize()} images",
            [
                (text, name, naming[f"{text}_names_{modality}"], percent(naming[f"{text}_names_{modality}"]))
                for text, name in TEXTS.items()
            ],
        )
        for modality in MODALITIES
    ]


def naming_words(naming: Mapping[str, float], people: int) -> list[str]:
    """What the six figures say, a guess among `people` texts, and what SII changed."""
    new = naming.get("new_people")
    if new == 0:
        return ["Nobody was new: the texts are those of the champion that training started from."]
    cross = (
        f"A text learnt from visible images alone names {percent(naming['visible_names_infrared'])} of the "
        f"infrared images; one learnt from infrared images alone names "
        f"{percent(naming['infrared_names_visible'])} of the visible ones. "
        f"A guess among {people} texts would name {percent(100 / people)}."
    )
    changes = [_change(naming, modality) for modality in MODALITIES]
    said = [cross, f"Fusing the two (SII) {changes[0]}, and {changes[1]}."]
    if new is None:
        return said
    return [
        f"The images are those of the {new} people who were new; the texts of all others are the champion's.",
        *said,
    ]


def _change(naming: Mapping[str, float], modality: str) -> str:
    """The fused text against the better one of the two."""
    fused = naming[f"fused_names_{modality}"]
    better = max(("visible", "infrared"), key=lambda text: naming[f"{text}_names_{modality}"])
    gain = fused - naming[f"{better}_names_{modality}"]
    than = f"the better of the two alone, {TEXTS[better].lower()}"
    if round(abs(gain), 1) == 0:
        return f"names as many {modality} images as {than} ({percent(fused)})"
    more = "more" if gain > 0 else "fewer"
    return f"names {abs(gain):.1f} points {more} of the {modality} images than {than} ({percent(fused)})"
