"""Labels of people, cameras and modalities: `canonical_label` decides which spellings are the same label.

All input passes through it: folders, manifests, the lists of benchmarks, aliases, `csdn evaluate-features`
and csdn.evaluation. docs/public-benchmarks.md, "Labels", has the rules.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np

# What tools write for a missing value, case-folded. "na" is not among them, because it is also a name.
MISSING = frozenset({"", "nan", "none", "null", "<na>"})
NO_LABEL = "no label"
NOT_WHOLE = "is a number that is not whole"
INEXACT = "is a float too large to be exact"
NOT_TEXT = "has a NUL or half a surrogate pair in it, which the JSON files of this project cannot hold"

# A float as tools write it. R and C write 1e+05 with a sign; 1e5 can be a hexadecimal id.
_FLOAT = re.compile(r"[+-]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=e))(?:e[+-][0-9]+)?|inf(?:inity)?)")
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
_RUNS = re.compile(r"[0-9]+|[^0-9\s]+")


class BadLabel(ValueError):
    """A value that cannot be a label; `reason` says why, without the value."""

    def __init__(self, value: Any, reason: str) -> None:
        super().__init__(f"{value!r} {reason}")
        self.reason = reason


def canonical_label(value: Any) -> str:
    """The label of a person, camera or modality; "" for a missing value, which is no label.

    value: a str, bytes, a number of Python or NumPy, or a missing value. Text is converted to Unicode NFC,
    stripped and case-folded; a whole number has the same label as an int and as a float in any spelling.
    Raises BadLabel for a number that is not whole, for a float so large that digits are lost, and for other
    types.

    >>> canonical_label(" Person 7 "), canonical_label("12.0"), canonical_label(np.float32(12))
    ('person 7', '12', '12')
    >>> canonical_label("007"), canonical_label(float("nan"))
    ('007', '')
    """
    value = _single(value)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise BadLabel(value, "is not UTF-8") from None
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, Real) and not isinstance(value, Integral):
        return _of_float(value, value)
    text = str(value)
    if isinstance(value, Integral | Decimal | np.bool_):
        return _of_text(text)
    if value is None or text in ("<NA>", "NaT"):  # missing values of pandas and NumPy
        return ""
    raise BadLabel(value, "is neither a text nor a number")


def _single(value: Any) -> Any:
    """The element of an array of one element, which is how values of MATLAB files arrive."""
    while isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    return value.item() if hasattr(value, "numel") and value.numel() == 1 else value  # a torch scalar


def _of_text(text: str) -> str:
    if _UNWRITABLE.search(text):
        raise BadLabel(text, NOT_TEXT)
    folded = unicodedata.normalize("NFC", text).strip().casefold()
    folded = unicodedata.normalize("NFC", folded)  # case folding can undo the composition
    if folded in MISSING:
        return ""
    return _of_float(float(folded), text) if _FLOAT.fullmatch(folded) else folded


def _of_float(number: Any, given: Any) -> str:  # number: a Real, a type that mypy does not support
    if number != number:
        return ""
    if math.isinf(number):
        raise BadLabel(given, NOT_WHOLE)
    if abs(number) >= exact_below(number.dtype if isinstance(number, np.floating) else np.float64):
        raise BadLabel(given, INEXACT)
    if number != int(number):
        raise BadLabel(given, NOT_WHOLE)
    return str(int(number))


def exact_below(kind: Any) -> int:
    """The largest number below which a float type represents every whole number: 2**53 for float64."""
    return int(2 / np.finfo(kind).eps)


def label_fault(value: Any) -> str | None:
    """Why a value is not a label, without the value; None where it is one."""
    try:
        return None if canonical_label(value) else NO_LABEL
    except BadLabel as bad:
        return bad.reason


def canonical_labels(column: Iterable[Any], what: str) -> list[str]:
    """The labels of a column of an index; `what` is its name. ValueError names the first bad entry."""
    values = list(column)
    if set(map(type, values)) == {str}:
        with suppress(BadLabel):  # the loop below names the first bad entry
            meanings = {text: canonical_label(text) for text in set(values)}
            if all(meanings.values()):
                return list(map(meanings.__getitem__, values))
    known: dict[Any, str] = {}
    labels = []
    for row, value in enumerate(values):
        try:
            label = _cached_label(value, known)
        except BadLabel as bad:
            raise ValueError(f"image {row} (from 0): {what} {bad}") from None
        if not label:
            raise ValueError(
                f"image {row} (from 0): {what} {value!r} is a missing value; leave out images without one"
            )
        labels.append(label)
    return labels


def _cached_label(value: Any, known: dict[Any, str]) -> str:
    key = (type(value), value)  # 1 equals True and 1.0
    try:
        if key not in known:
            known[key] = canonical_label(value)
        return known[key]
    except TypeError:  # an array has no hash, and pd.NA no truth value
        return canonical_label(value)


def _skeleton(label: str) -> tuple[str, ...] | str:
    """The runs of letters and digits of a label: without punctuation, spaces and leading zeros.

    >>> _skeleton("gate-01") == _skeleton("gate_1"), _skeleton("1-2") == _skeleton("12")
    (True, False)
    """
    plain = unicodedata.normalize("NFKC", label).casefold()
    apart = "".join(_visible(letter) for letter in plain)
    runs = (run.lstrip("0") or "0" if run[0] in "0123456789" else run for run in _RUNS.findall(apart))
    return tuple(runs) or label


def _visible(letter: str) -> str:
    """A letter or digit unchanged, a space for a separator, nothing for an invisible character."""
    category = unicodedata.category(letter)[0]
    if letter.isspace() or category in "PSZ":
        return " "
    return "" if category == "C" else letter


def spelling_notes(
    what: str, spellings: Mapping[Any, Any], labels: Iterable[str], remedy: str = ""
) -> list[str]:
    """Warnings of spellings that were joined, and of labels that look alike but stay apart (same
    `_skeleton`).

    what: "people" or "cameras"; spellings: from each label as given to its canonical one; remedy: how to join
    two labels that mean the same.
    """
    notes = []
    if joined := _groups(spellings, spellings.__getitem__):
        notes.append(f"{what}: {_named(joined)} were joined, as spellings of one label")
    if alike := _groups(set(labels), _skeleton):
        notes.append(f"{what}: {_named(alike)} look alike and stay apart; if they are one, {remedy}")
    return notes


def _groups(labels: Iterable[Any], key: Callable[[Any], Any]) -> list[list[str]]:
    """Groups of two or more labels that have the same key."""
    groups: dict[Any, list[str]] = defaultdict(list)
    for label in sorted(labels, key=str):
        groups[key(label)].append(str(label))
    return [group for group in groups.values() if len(group) > 1]


def _named(groups: Sequence[Sequence[str]]) -> str:
    first, *others = groups
    names = " and ".join(map(repr, first[:3])) + (f" (and {len(first) - 3} more)" if len(first) > 3 else "")
    return names + (f" (and {len(others)} more such groups)" if others else "")
