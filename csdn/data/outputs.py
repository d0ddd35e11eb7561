"""Texts of the outputs: CSV tables, and the refused files of a drop. What they escape is part of results."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from csdn.runtime.sanitize import escape_control_chars

# Characters that begin a formula in a spreadsheet, and the apostrophe that marks a cell as text.
_FORMULA = frozenset("=+-@'")
# In many countries a semicolon ends a cell; DVC writes cells into an HTML page without escaping them.
_CELL_SYNTAX = ";<>"
_ESCAPE = re.compile(r"\\(?:\\|[nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


def write_csv(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = (), digits: int | None = None
) -> None:
    """Write rows as CSV for spreadsheets; texts are escaped by `as_cell`, numbers are unchanged.

    columns: the header of a table without rows; digits: significant digits of floats, by default all.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = list(rows[0]) if rows else columns
        writer.writerow(columns)
        writer.writerows([_cell(row[column], digits) for column in columns] for row in rows)


def _cell(value: Any, digits: int | None) -> Any:
    if isinstance(value, float) and digits:
        return f"{value:.{digits}g}"
    return as_cell(value) if isinstance(value, str) else value


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows that `write_csv` wrote: texts without the escapes, numbers as texts."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: from_cell(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def as_cell(text: str) -> str:
    r"""A text as a CSV cell: not a formula, without tags, on one line. `from_cell` reverses it.

    >>> as_cell("=1+1"), as_cell("gate\x1b[2J"), as_cell("north; south")
    ("'=1+1", 'gate\\x1b[2J', 'north\\x3b south')
    """
    cell = escape_control_chars(text.replace("\\", "\\\\"))
    for letter in _CELL_SYNTAX:
        cell = cell.replace(letter, f"\\x{ord(letter):02x}")
    # Spreadsheets skip leading spaces; some accept full-width signs too.
    first = unicodedata.normalize("NFKC", cell.lstrip()[:1])[:1]
    return f"'{cell}" if first in _FORMULA else cell


def from_cell(cell: str) -> str:
    r"""The text from which `as_cell` made a cell.

    >>> from_cell("'=1+1"), from_cell("gate\\x1b[2J")
    ('=1+1', 'gate\x1b[2J')
    """
    return _ESCAPE.sub(lambda found: found[0].encode().decode("unicode_escape"), cell.removeprefix("'"))


# Refused files of a drop, as text: the reasons, how often each occurred, and its first files.


EXAMPLES = 3  # files named for each reason
_REASONS = 8  # reasons shown


def examples(refused: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Reason -> its first EXAMPLES paths, from pairs (path, reason); both sorted."""
    found: dict[str, list[str]] = {}
    for path, reason in sorted(refused, key=lambda pair: pair[::-1]):
        paths = found.setdefault(reason, [])
        if len(paths) < EXAMPLES:
            paths.append(path)
    return found


def in_words(counts: Mapping[str, int], named: Mapping[str, Sequence[str]]) -> str:
    """Reasons by frequency (`counts`), each with its example paths (`named`).

    >>> in_words({"empty file": 1, "no such file": 7}, {"no such file": ["a.jpg", "b.jpg"]})
    '7 x no such file (a.jpg, b.jpg, ...), 1 x empty file'
    """
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [f"{n} x {reason}{_paths(n, named.get(reason, ()))}" for reason, n in most[:_REASONS]]
    rest = sum(n for _, n in most[_REASONS:])
    return ", ".join(shown + [f"{rest} for other reasons"] * bool(rest))


def _paths(count: int, named: Sequence[str]) -> str:
    if not named:
        return ""
    return f" ({', '.join(path or repr(path) for path in named)}{', ...' * (count > len(named))})"


def refused_in_words(refused: Sequence[tuple[str, str]]) -> str:
    """`in_words` of pairs (path, reason).

    >>> refused_in_words([("b.jpg", "no such file"), ("a.jpg", "no such file")])
    '2 x no such file (a.jpg, b.jpg)'
    """
    return in_words(Counter(reason for _, reason in refused), examples(refused))
