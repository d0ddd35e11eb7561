"""The synthetic people: the attributes of a person are a pure function of an integer person number.

Shape, colours and materials come from three random streams. A visible image shows shape and colours, an
infrared image shape and materials, so only shape, pattern and accessories match across the modalities.
csdn.synthetic.figure draws a person, csdn.synthetic.rendering makes the image of a camera,
csdn.synthetic.sets groups people into drops.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from csdn.data.rng import generator

RENDERER_VERSION = 1  # part of every random draw; raise it whenever an image of the same person changes

PRETRAINING = range(1_000_000_000, 2_000_000_000)  # for training the small CLIP; drops use lower numbers
FRESH = range(2_000_000_000, 3_000_000_000)  # no model has seen these; for zero-shot figures

HAIR = ("no hair", "short hair", "long hair", "curly hair", "a bun", "a ponytail")
UPPER = ("vest", "tee", "sweater", "jacket", "coat")
LOWER = ("shorts", "trousers", "leggings", "skirt", "long skirt")
PATTERN = ("plain", "striped", "vertical", "diagonal", "checked", "dotted", "banded", "split")
BAG = ("no bag", "backpack", "satchel", "handbag")
HAT = ("no hat", "cap", "hat")
SCARF = ("no scarf", "scarf")
STATURE = ("short", "average", "tall")
BUILD = ("slim", "medium", "heavy")

PALETTE = {
    "black": (30, 30, 34),
    "white": (232, 232, 226),
    "grey": (128, 130, 134),
    "red": (190, 38, 44),
    "orange": (226, 122, 36),
    "yellow": (228, 200, 64),
    "green": (52, 128, 66),
    "blue": (44, 86, 172),
    "purple": (116, 58, 140),
    "pink": (226, 140, 168),
    "brown": (112, 72, 44),
}
COLOURS = tuple(PALETTE)
HAIR_COLOURS = ((28, 24, 22), (74, 46, 28), (124, 84, 44), (196, 160, 92), (150, 66, 34), (168, 168, 170))
SKIN_COLOURS = ((246, 210, 180), (226, 180, 142), (196, 144, 104), (146, 98, 66), (98, 64, 44))


class Stream(IntEnum):
    """What a random draw is for; streams share no random numbers."""

    SHAPE = 1
    COLOUR = 2
    MATERIAL = 3
    IMAGE = 4


class Shape(NamedTuple):
    """The attributes that both modalities show. Integers are indices into the tuples above, unless noted."""

    stature: int
    build: int
    height: float  # of the average person
    width: float  # of the average person
    legs: float  # length, of the person's height
    hair: int
    upper: int
    lower: int
    pattern: int
    pattern_scale: int  # 0 fine, 1 medium, 2 coarse
    bag: int
    hat: int
    scarf: int


class Colours(NamedTuple):
    """The attributes that only visible images show: RGB, 0..255, and indices into COLOURS."""

    upper_name: int
    lower_name: int
    upper: tuple[float, ...]
    second: tuple[float, ...]  # of the pattern
    lower: tuple[float, ...]
    shoes: tuple[float, ...]
    inner: tuple[float, ...]
    hair: tuple[float, ...]
    skin: tuple[float, ...]
    bag: tuple[float, ...]
    hat: tuple[float, ...]
    scarf: tuple[float, ...]


class Materials(NamedTuple):
    """The attributes that only infrared images show: the reflectance of materials, 0..255."""

    upper: float
    second: float
    lower: float
    shoes: float
    inner: float
    hair: float
    skin: float
    bag: float
    hat: float
    scarf: float


@dataclass(frozen=True, slots=True)
class Person:
    number: int
    shape: Shape
    colours: Colours
    materials: Materials


def person(number: int) -> Person:
    """The person with a number (>= 0)."""
    return Person(
        number,
        draw_shape(_stream(number, Stream.SHAPE)),
        draw_colours(_stream(number, Stream.COLOUR)),
        draw_materials(_stream(number, Stream.MATERIAL)),
    )


def _stream(number: int, stream: Stream) -> np.random.Generator:
    return generator(RENDERER_VERSION, stream, number)


def draw_shape(rng: np.random.Generator) -> Shape:
    stature, build = (int(choice) for choice in rng.integers(3, size=2))
    return Shape(
        stature=stature,
        build=build,
        height=(0.88, 0.96, 1.04)[stature] + rng.uniform(-0.02, 0.02),
        width=(0.84, 1.0, 1.2)[build] + rng.uniform(-0.04, 0.04),
        legs=rng.uniform(0.45, 0.52),
        hair=int(rng.integers(len(HAIR))),
        upper=int(rng.integers(len(UPPER))),
        lower=int(rng.integers(len(LOWER))),
        pattern=int(rng.integers(len(PATTERN))),
        pattern_scale=int(rng.integers(3)),
        bag=int(rng.integers(len(BAG))),
        hat=int(rng.choice(len(HAT), p=(0.5, 0.25, 0.25))),
        scarf=int(rng.random() < 0.3),
    )


def draw_colours(rng: np.random.Generator) -> Colours:
    names = rng.integers(len(COLOURS), size=7)
    # The second colour of a pattern differs from the first; otherwise the pattern would be invisible.
    second = (names[0] + 1 + rng.integers(len(COLOURS) - 1)) % len(COLOURS)
    upper, lower, shoes, inner, bag, hat, scarf = (_tinted(rng, PALETTE[COLOURS[name]]) for name in names)
    return Colours(
        upper_name=int(names[0]),
        lower_name=int(names[1]),
        upper=upper,
        second=_tinted(rng, PALETTE[COLOURS[second]]),
        lower=lower,
        shoes=shoes,
        inner=inner,
        hair=_tinted(rng, HAIR_COLOURS[rng.integers(len(HAIR_COLOURS))]),
        skin=_tinted(rng, SKIN_COLOURS[rng.integers(len(SKIN_COLOURS))]),
        bag=bag,
        hat=hat,
        scarf=scarf,
    )


def _tinted(rng: np.random.Generator, colour: tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(np.clip(np.asarray(colour) + rng.normal(0, 8, 3), 12, 245))


def draw_materials(rng: np.random.Generator) -> Materials:
    upper, lower, shoes, inner, bag, hat, scarf = rng.uniform(55, 225, 7)
    contrast = rng.uniform(45, 110) * (
        1 if upper < 140 else -1
    )  # patterns are visible in infrared too, with less contrast
    return Materials(
        upper=upper,
        second=upper + contrast,
        lower=lower,
        shoes=shoes,
        inner=inner,
        hair=rng.uniform(45, 150),
        skin=rng.uniform(165, 215),
        bag=bag,
        hat=hat,
        scarf=scarf,
    )
