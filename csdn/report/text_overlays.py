"""Text maps as overlays of images, all with the same scale, and sentences on their values."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from csdn.report.images import Gallery
from csdn.report.projection import share_between
from csdn.report.wording import percent

TEXT, ATTENTION = (255, 140, 0), (40, 150, 255)
STRONGEST = 0.8  # opacity of the highest value


@dataclass(frozen=True)
class Overlay:
    """An image with its two maps as data URIs of PNGs, one pixel a cell."""

    modality: str
    camera: str
    picture: str
    text: str
    attention: str


@dataclass(frozen=True)
class TextMapsShown:
    """`margin_high`, `attention_high`: the values with full opacity; `even`: uniform attention."""

    people: list[tuple[str, list[Overlay]]]
    margin_high: str
    attention_high: str
    even: str
    grid: tuple[int, int]
    words: list[str]


def text_maps_shown(
    images: Sequence[Mapping[str, str]], maps: Mapping[str, np.ndarray], gallery: Gallery
) -> TextMapsShown:
    """The section of evaluation/text_maps.*: rows `images` (key, person, modality), maps [n, h, w]."""
    margin = maps["own"] - maps["others"]
    highs = max(float(margin.max()), 1e-9), float(maps["attention"].max())
    people: dict[str, list[Overlay]] = {row["person"]: [] for row in images}
    for row, agreement, attention in zip(images, margin, maps["attention"], strict=True):
        shown = gallery.show(row["key"])
        people[row["person"]].append(
            Overlay(
                row["modality"],
                shown.camera,
                shown.picture,
                heat(agreement / highs[0], TEXT),
                heat(attention / highs[1], ATTENTION),
            )
        )
    return TextMapsShown(
        list(people.items()),
        f"{highs[0]:.2f}",
        f"{highs[1]:.2f}",
        f"{1 / (1 + margin[0].size):.2f}",
        margin.shape[1:],
        map_words(margin, maps["attention"]),
    )


def heat(values: np.ndarray, colour: tuple[int, int, int]) -> str:
    """Values [h, w] as a PNG data URI of one colour: transparent at 0 and below, most opaque at 1."""
    pixels = np.empty((*values.shape, 4), np.uint8)
    pixels[..., :3] = colour
    pixels[..., 3] = (255 * STRONGEST * np.clip(values, 0, 1)).round()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def map_words(margin: np.ndarray, attention: np.ndarray) -> list[str]:
    """Sentences on the maps [n, h, w]: `margin` (own text less the mean of the others) and attention."""
    cells = margin.reshape(len(margin), -1)
    found = [
        f"{percent(100 * float((cells > 0).mean()), 0)} of the cells shown agree more with the text of their "
        "own person than, on average, with the texts of the others."
    ]
    if len(cells) > 1 and cells.shape[1] > 1:
        place = share_between(cells.reshape(-1, 1), np.tile(np.arange(cells.shape[1]), len(cells)))
        found.append(
            f"{percent(100 * place, 0)} of the variance of these values is one pattern that all images share "
            "(the position of the cell); the rest differs from image to image."
        )
    if cells.std() > 0 and attention.std() > 0:
        alike = float(np.corrcoef(cells.ravel(), attention.ravel())[0, 1])
        found.append(f"The correlation with the pool's attention is {alike:.2f}.")
    return found
