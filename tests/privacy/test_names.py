"""A person's name is found, and replaced, in every spelling that means the same label."""

from __future__ import annotations

import json
import unicodedata

import pytest

from csdn.data.labels import canonical_label
from csdn.privacy.names import Names

FOUND = [
    ("ann lee", "Ann Lee was here", "X was here"),
    ("ann lee", "in s3://drops/Ann%20Lee/1.jpg", "in s3://drops/X/1.jpg"),
    ("o'neil", "<td>O&#x27;Neil</td>", "<td>X</td>"),
    ("o'neil", "<td>O&#39;neil</td>", "<td>X</td>"),
    ("ann_lee", r"| /in/ann\_lee |", "| /in/X |"),
    ('ann "the" lee', r'{"a": "ANN \"the\" Lee"}', '{"a": "X"}'),
    ("strass", "the Straß, a STRASS and a stra\u017fs", "the X, a X and a X"),
    ("i\u0307pek", "\u0130PEK, I\u0307PEK", "X, X"),
    ("ren\u00e9", "Ren\u00e9, RENE\u0301, Rene\u0301", "X, X, X"),
    (
        "ren\u00e9",
        r'{"a": "Ren\u00e9", "b": "REN\u00C9", "c": "Rene\u0301"}',
        '{"a": "X", "b": "X", "c": "X"}',
    ),
    ("ren\u00e9", r'{"json": "[\"Ren\\u00e9\"]"}', r'{"json": "[\"X\"]"}'),
    ("ren\u00e9", "/in/Ren%C3%A9/1.jpg", "/in/X/1.jpg"),
    ("\U00010428lias", r'"\ud801\udc00lias"', '"X"'),  # a capital beyond 16 bits, as JSON escapes it
    ("17", '{"person": "17", "images": 17}', '{"person": "X", "images": 17}'),
    ("17", '{"person": "17.0"}', '{"person": "X"}'),
    ("17", "visible/17/17/0001.jpg", "visible/17/X/0001.jpg"),
]


@pytest.mark.parametrize(("label", "text", "expected"), FOUND)
def test_a_name_is_found_and_replaced(label, text, expected):
    assert Names([label, "somebody else"]).are_in(text)
    assert Names([label, "somebody else"]).replaced(text, "X") == expected


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("ann lee", "Joann Leek"),
        ("ren\u00e9", "rene, ren\u00e9e, rene\u0301e"),
        ("rene", "Rene\u0301 Ren\u00e9"),
        ("ipek", "\u0130pek"),  # canonical_label keeps them apart
        ("17", "17 images, rank 17"),
        ("17", '{"person": "017", "name": "17 a"}'),
        # Cameras that are called like the person.
        ("17", '{"camera": "17", "cameras": {"17": 400, "18": {}}}'),
        ("17", '{"person":"18","camera":"17"}'),
        ("17", "infrared/17/18/0001.jpg"),
    ],
)
def test_another_name_is_not_found_and_stays(label, text):
    assert not Names([label]).are_in(text)
    assert Names([label]).replaced(text, "X") == text


@pytest.mark.parametrize(
    "given", ["Straße 1", "ΌΣΟΣ", "\u01f0ulia", "\u0390bert", "\ud55c\uad6d \uc0ac\ub78c", "ﬀion"]
)
def test_every_spelling_of_a_label_is_found_in_every_form(given):
    """As text in both forms of Unicode and both cases, and as JSON."""
    label = canonical_label(given)
    forms = {unicodedata.normalize(form, given) for form in ("NFC", "NFD")}
    for text in {spelled for form in forms for spelled in (form, form.upper(), form.casefold())}:
        if canonical_label(text) == label:
            assert Names([label]).are_in(f"of {text}.") and Names([label]).are_in(
                json.dumps({"person": text})
            )
            assert Names([label]).replaced(f"of {text}.", "X") == "of X."
