"""Texts for the small CLIP: captions of the synthetic people, and a phrase for each value of an attribute.

A text mentions only what its image shows, so only texts of visible images mention colours. As on the web, the
text says whether a photo is infrared.
"""

from __future__ import annotations

from csdn.synthetic.people import (
    BAG,
    BUILD,
    COLOURS,
    HAIR,
    HAT,
    LOWER,
    PATTERN,
    SCARF,
    STATURE,
    UPPER,
    Colours,
    Person,
    Shape,
)

PATTERN_SCALE = ("fine", "", "coarse")


def _a(words: str) -> str:
    """The words with their article: "a red tee", "an orange tee", "a skirt", but "trousers"."""
    if words.endswith("s") or words.startswith("no "):
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


# Attribute -> a phrase for each of its values, in their order.
PHRASES: dict[str, tuple[str, ...]] = {
    "stature": tuple(f"{_a(name)} person" for name in STATURE),
    "build": tuple(f"{_a(name)} person" for name in BUILD),
    "hair": tuple(f"a person with {name}" for name in HAIR),
    "upper": tuple(f"a person in {_a(name)}" for name in UPPER),
    "lower": tuple(f"a person in {_a(name)}" for name in LOWER),
    "pattern": tuple(f"{_a(name)} garment" for name in PATTERN),
    "bag": tuple(f"a person with {_a(name)}" for name in BAG),
    "hat": tuple(f"a person with {_a(name)}" for name in HAT),
    "scarf": tuple(f"a person with {_a(name)}" for name in SCARF),
    "upper colour": tuple(f"{_a(name)} garment" for name in COLOURS),
    "lower colour": tuple(f"{_a(name)} lower garment" for name in COLOURS),
}
COLOUR_ATTRIBUTES = ("upper colour", "lower colour")


def shown(infrared: bool) -> list[str]:
    """The attributes that an image of this modality shows, in the order of PHRASES: colours come last."""
    return [name for name in PHRASES if not (infrared and name in COLOUR_ATTRIBUTES)]


def photo_of(infrared: bool, what: str) -> str:
    return f"{'an infrared photo' if infrared else 'a photo'} of {what}"


def attributes(person: Person) -> dict[str, int]:
    """A person's value of each attribute, an index into PHRASES[attribute]."""
    shape = person.shape
    values = {name: getattr(shape, name) for name in PHRASES if name not in COLOUR_ATTRIBUTES}
    return values | {"upper colour": person.colours.upper_name, "lower colour": person.colours.lower_name}


def caption(person: Person, infrared: bool) -> str:
    """One sentence with all attributes that the image shows, at most 30 tokens (the context is 32)."""
    shape = person.shape
    upper, lower = _garments(shape, None if infrared else person.colours)
    who = f"{_a(STATURE[shape.stature])} {BUILD[shape.build]} person with {HAIR[shape.hair]}"
    return photo_of(infrared, " ".join([who, "in", _a(upper), "and", _a(lower), *_worn(shape)]))


def _garments(shape: Shape, colours: Colours | None) -> tuple[str, str]:
    pattern = PATTERN[shape.pattern]
    scale = PATTERN_SCALE[shape.pattern_scale] if pattern != "plain" else ""
    upper, lower = [scale, pattern, UPPER[shape.upper]], [LOWER[shape.lower]]
    if colours:
        upper.insert(0, COLOURS[colours.upper_name])
        lower.insert(0, COLOURS[colours.lower_name])
    return " ".join(filter(None, upper)), " ".join(lower)


def _worn(shape: Shape) -> list[str]:
    """The accessories, such as "with a cap a scarf and a backpack"; absent ones are not mentioned."""
    choices = ((HAT, shape.hat), (SCARF, shape.scarf), (BAG, shape.bag))
    things = [_a(names[choice]) for names, choice in choices if choice]
    if not things:
        return []
    *others, last = things
    return ["with", *others, "and", last] if others else ["with", last]
