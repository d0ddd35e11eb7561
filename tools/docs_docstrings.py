"""Docstrings as Markdown, for the documentation site: examples become code, rows of arguments lists."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ARGUMENT = re.compile(r"[\w, *]+: ")


class AsMarkdown(griffe.Extension):
    """Griffe calls it for each object that has a docstring; mkdocs.yml names this file."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """The docstring with marks where Markdown would see quotations, or run lines together."""
    return "\n\n".join(_paragraph(text) for text in docstring.split("\n\n"))


def _paragraph(text: str) -> str:
    lines = text.splitlines()
    if text.startswith(">>> "):
        return f"```pycon\n{text}\n```"
    starts = [line for line in lines if not line.startswith(" ")]
    if len(starts) > 1 and all(map(_ARGUMENT.match, starts)):
        return "\n".join(line if line.startswith(" ") else f"* {line}" for line in lines)
    return f"\\{text}" if text.startswith("- ") else text
