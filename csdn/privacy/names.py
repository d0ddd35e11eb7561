"""A person's labels in texts: where they are, in every spelling, and the same texts without them.

csdn.data.labels says which spellings are one label. JSON, HTML, Markdown and URLs write some letters as
escapes, so a text is read twice: as it is, and without its escapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import unescape
from unicodedata import normalize
from urllib.parse import unquote

from csdn.data.labels import canonical_label, label_fault

# JSON's \u00e9, with more backslashes where it is JSON inside a string; \" and \_; %C3%A9; &eacute; and &#39;
_ESCAPE = re.compile(r"(?:\\+u[0-9a-fA-F]{4})+|\\+(?:_|[^\w\s])|(?:%[0-9a-fA-F]{2})+|&#?\w{1,8};")
_UNIT = re.compile(rf"{_ESCAPE.pattern}|.[\u0300-\u036f]*", re.DOTALL)  # an escape, or a letter and its marks
_IN_WORD = r"[\w\u0300-\u036f]"  # in a folded text, in which accents are characters of their own

# A whole string of JSON, or the name of a folder, in a folded text. What names a camera is left out: the
# first folder in <modality>/<camera>/<person>/<name>, and keys of numbers and objects, as in metrics.
_CAMERA = r'[^"/\n]+/[^"/\n]+/'
_WHOLE = re.compile(
    rf'(?<=["/])(?!(?<=visible/){_CAMERA})(?!(?<=infrared/){_CAMERA})(?<!camera": ")(?<!camera":")'
    r'[^"/\n]{1,40}(?=["/])(?!": ?[-\d{\[])'
)


def folded(text: str) -> str:
    """A text in a form in which all spellings of a label are the same.

    >>> folded("STRASSE") == folded("Straße"), folded("Ren\u00e9") == folded("RENE\u0301")
    (True, True)
    """
    return normalize("NFD", normalize("NFC", text).casefold())


def unescaped(text: str) -> str:
    r"""A text with the letters that its escapes mean.

    >>> unescaped(r"Ren\u00E9, Ren%C3%A9, Ren&eacute;, Ann\_Lee")
    'René, René, René, Ann_Lee'
    """
    return _ESCAPE.sub(lambda found: _meaning(found[0]), text)


def _meaning(escape: str) -> str:
    if escape[0] == "%":
        return unquote(escape)
    if escape[0] == "&":
        return unescape(escape)
    if not escape[-1].isalnum():
        return escape[-1]
    return str(json.loads('"' + re.sub(r"\\+", r"\\", escape) + '"'))


class Names:
    """The labels of a person, to be found in texts.

    A label counts as a whole word. One of digits alone, or of fewer than four characters, is in too many
    texts that mean something else: it counts only as a whole string of JSON, or as the name of a folder.
    """

    def __init__(self, labels: Iterable[str]) -> None:
        labels = frozenset(labels)
        self._short = {label for label in labels if len(label) < 4 or label.isdigit()}
        self._long = sorted(map(folded, labels - self._short))
        self._words = re.compile(rf"(?<!{_IN_WORD})(?:{'|'.join(map(re.escape, self._long))})(?!{_IN_WORD})")

    def are_in(self, text: str) -> bool:
        """Whether a text has one of the labels."""
        if self._spans(folded(text)):
            return True
        plain = unescaped(text)
        return plain != text and bool(self._spans(folded(plain)))

    def replaced(self, text: str, name: str) -> str:
        """The text with `name` in the place of each label; the rest is as it was."""
        for read in (str, unescaped):
            letters, units = "", list[tuple[int, int]]()  # the folded text, and where each letter comes from
            for found in _UNIT.finditer(text):
                letters += (part := folded(read(found[0])))
                units += [found.span()] * len(part)
            for start, end in sorted(self._spans(letters), reverse=True):
                text = text[: units[start][0]] + name + text[units[end - 1][1] :]
        return text

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """(begin, end) of each label in a folded text."""
        found = []
        if any(label in text for label in self._long):  # a hundred times as fast as the pattern
            found += [match.span() for match in self._words.finditer(text)]
        if self._short:
            found += [match.span() for match in _WHOLE.finditer(text) if self._is_short(match[0])]
        return found

    def _is_short(self, text: str) -> bool:
        return not label_fault(text) and canonical_label(text) in self._short
