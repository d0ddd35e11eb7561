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
# In a folded text, in which accents are characters of their own.
_IN_WORD = r"(?:[^\W_]|[\u0300-\u036f])"
_BETWEEN = r"[\s_+]+"  # words of a name: names of files and URLs have no spaces

# A whole string of JSON, or the name of a folder, in a folded text. What names a camera is left out: the
# first folder in <modality>/<camera>/<person>/<name>, and keys of numbers and objects, as in metrics.
_CAMERA = r'[^"/\n]+/[^"/\n]+/'
_WHOLE = re.compile(
    rf'(?<=["/])(?!(?<=visible/){_CAMERA})(?!(?<=infrared/){_CAMERA})(?<!camera": ")(?<!camera":")'
    r'[^"/\n]{1,40}(?=["/])(?!": ?[-\d{\[])'
    r"|(?<=<bdi>)[^<\n]{1,40}(?=</bdi>)"
)
_ENCLOSED = re.compile(r"(?<=')[^'\n]{1,40}(?=')|(?<=>)[^<>\n]{1,40}(?=<)")
# The end of the head of a column, in which numbers mean people; not person_row, or the id of an image.
OF_PEOPLE = re.compile(r"""(?:(?:person|people|label|identity|name)(?:_?id)?|\bpid)s?["' ]*(?:[,;\t\r]|$)""")
_CELL = re.compile(r"(?:^|(?<=[,;\t]))[^,;\t\r\n]{1,40}(?=[,;\t\r\n]|$)", re.MULTILINE)


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

    A label with letters counts as a whole word. One of digits alone is in too many texts that mean something
    else: it counts only as a whole string in quotes, as an element of HTML, as the name of a folder, and as a
    cell of a CSV that has people.

    sure: also labels of fewer than four characters count only as a whole string of JSON, as a name in a page
    of this project, or as the name of a folder: for removing files, and for files that are not texts.
    """

    def __init__(self, labels: Iterable[str]) -> None:
        labels = frozenset(labels)
        self._short = {label for label in labels if len(label) < 4 or label.isdigit()}
        self._numbers = {label for label in self._short if not any(map(str.isalpha, label))}
        self._words = {label: _pattern(label) for label in sorted(labels - self._numbers)}

    def are_in(self, text: str, sure: bool = False) -> bool:
        """Whether a text has one of the labels."""
        if self._spans(folded(text), sure):
            return True
        plain = unescaped(text)
        return plain != text and bool(self._spans(folded(plain), sure))

    def replaced(self, text: str, name: str) -> str:
        """The text with `name` in the place of each label; the rest is as it was."""
        for read in (str, unescaped):
            letters, units = "", list[tuple[int, int]]()  # the folded text, and where each letter comes from
            for found in _UNIT.finditer(text):
                letters += (part := folded(read(found[0])))
                units += [found.span()] * len(part)
            for start, end in reversed(self._spans(letters)):
                text = text[: units[start][0]] + name + text[units[end - 1][1] :]
        return text

    def _spans(self, text: str, sure: bool = False) -> list[tuple[int, int]]:
        """(begin, end) of each label in a folded text; none overlaps another."""
        # The parts first: a hundred times as fast as the patterns.
        words = {label for label, (parts, _) in self._words.items() if all(part in text for part in parts)}
        found = list[tuple[int, int]]()
        for label in words - self._short if sure else words:
            found += [match.span() for match in self._words[label][1].finditer(text)]
        if self._numbers or words & self._short:
            patterns = [_WHOLE] if sure else [_WHOLE, _ENCLOSED]
            if not sure and OF_PEOPLE.search(text.partition("\n")[0]):
                patterns.append(_CELL)
            matches = (match for pattern in patterns for match in pattern.finditer(text))
            found += [match.span() for match in matches if self._is_short(match[0])]
        return _apart(found)

    def _is_short(self, text: str) -> bool:
        return not label_fault(text) and canonical_label(text) in self._short


def _pattern(label: str) -> tuple[list[str], re.Pattern[str]]:
    """(the words of a label, what finds it in a folded text).

    Chinese and Japanese have no spaces: a label of three of their letters counts anywhere.
    """
    parts = [part for part in re.split(_BETWEEN, folded(label)) if part]
    pattern = _BETWEEN.join(map(re.escape, parts)) or re.escape(label)
    if not re.fullmatch(r"[\u3040-\u30ff\u3400-\u9fff]{3,}", label):
        pattern = f"(?<!{_IN_WORD}){pattern}(?!{_IN_WORD})"
    return parts, re.compile(pattern)


def _apart(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans without those that begin inside another."""
    kept = list[tuple[int, int]]()
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
    return kept
