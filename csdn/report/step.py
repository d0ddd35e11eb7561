"""One thing to look at next."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """`text` states the number it rests on; `where` is the part of the page that shows it.

    A text with names in it is Markup, with the names as csdn.report.words.bdi has them.
    """

    title: str
    text: str
    where: str
