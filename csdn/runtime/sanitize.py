"""What may be shown and kept: names that cannot steer what shows them, addresses without a password."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

# A colon before an @, as in s3://key:secret@bucket, or a query, as in a signed link.
_CREDENTIALS = re.compile(r"[a-z0-9+.-]+://([^@]*:[^@]*@|[^/]*@|.*\?)", re.IGNORECASE)
# What begins a formula in a spreadsheet, and the apostrophe that says that the cell is a text.
_FORMULA = frozenset("=+-@'")
# In many countries a semicolon ends a cell; and DVC writes cells into a page as they are.
_MARKS_OF_CELLS = ";<>"
_ESCAPE = re.compile(r"\\(?:\\|[nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
# Markdown's marks, HTML's, and what makes an address a link.
_MARKS = re.compile(r"[\\`*_\[\]<>|&~$@]|(?<=:)/|(?<=www)\.")

# The same inside a text. Names of S3's objects may have a question mark; elsewhere a secret may follow it.
_USER_IN_TEXT = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY_IN_TEXT = re.compile(r"\b((?!s3:)[a-z][a-z0-9+.-]*://[^\s?#]*[?#])[^\s`'\")>]+", re.IGNORECASE)


def escape_control_chars(text: str, keep: str = "") -> str:
    r"""`text` with escapes for what does not print: control characters, and those that hide or turn text.

    >>> printable("gate\x1b[2J\n")
    'gate\\x1b[2J\\n'
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode()
        for letter in text
    )


def as_cell(text: str) -> str:
    r"""A text as a cell of a CSV file: no formula, no tag, on one line. `from_cell` gives the text back.

    >>> as_cell("=1+1"), as_cell("gate\x1b[2J"), as_cell("north; south")
    ("'=1+1", 'gate\\x1b[2J', 'north\\x3b south')
    """
    cell = escape_control_chars(text.replace("\\", "\\\\"))
    for letter in _MARKS_OF_CELLS:
        cell = cell.replace(letter, f"\\x{ord(letter):02x}")
    # A spreadsheet skips spaces, and in some languages takes full-width signs as well.
    first = unicodedata.normalize("NFKC", cell.lstrip()[:1])[:1]
    return f"'{cell}" if first in _FORMULA else cell


def from_cell(cell: str) -> str:
    r"""The text that `as_cell` made a cell of.

    >>> from_cell("'=1+1"), from_cell("gate\\x1b[2J")
    ('=1+1', 'gate\x1b[2J')
    """
    return _ESCAPE.sub(lambda found: found[0].encode().decode("unicode_escape"), cell.removeprefix("'"))


def as_markdown(text: str) -> str:
    r"""A text within a line of Markdown: no mark, no tag and no link comes of it.

    >>> as_markdown("north|gate <b>")
    'north\\|gate \\<b\\>'
    """
    return _MARKS.sub(lambda found: f"\\{found[0]}", escape_control_chars(text))


def has_credentials(address: str) -> bool:
    """Whether an address carries a name, a password or a signature: it would end in Git, logs and reports.

    >>> has_credentials("s3://key:secret@bucket/in"), has_credentials("s3://bucket/in")
    (True, False)
    """
    return _CREDENTIALS.match(address) is not None


def redact(address: str) -> str:
    """The address as it may be shown; one that carries nothing secret is itself.

    >>> without_credentials("s3://key:secret@bucket/in")
    's3://***@bucket/in'
    """
    if not has_credentials(address):
        return address
    scheme, _, rest = address.partition("://")
    place = rest.rpartition("@")[2].partition("?")
    return f"{scheme}://{'***@' if '@' in rest else ''}{place[0]}{'?***' if place[1] else ''}"


def redact_text(text: str) -> str:
    """A text, such as another program's words, whose addresses may be shown.

    >>> redacted("no answer from https://ana:secret@host/in?token=secret")
    'no answer from https://***@host/in?***'
    """
    return _QUERY_IN_TEXT.sub(r"\1***", _USER_IN_TEXT.sub("***@", text))


def escape_tags(text: str, keep: str = "") -> str:
    """`printable` for a page that somebody else writes without care: no tag begins or ends in the text.

    >>> unmarked("</script>")
    '‹/script›'
    """
    return escape_control_chars(text, keep).replace("<", "‹").replace(">", "›")


# What was refused of a drop, in words: the reasons, how often each occurred, and the first files of each.


EXAMPLES = 3  # files that are named for each reason
_REASONS = 8  # that are shown


def examples(refused: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Reason -> the first paths, of pairs (path, reason); both sorted."""
    found: dict[str, list[str]] = {}
    for path, reason in sorted(refused, key=lambda pair: pair[::-1]):
        paths = found.setdefault(reason, [])
        if len(paths) < EXAMPLES:
            paths.append(path)
    return found


def in_words(counts: Mapping[str, int], named: Mapping[str, Sequence[str]]) -> str:
    """Reasons by how often each occurred (`counts`), with the paths that `named` has of each.

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
    """Pairs (path, reason) as `in_words` has them.

    >>> refused_in_words([("b.jpg", "no such file"), ("a.jpg", "no such file")])
    '2 x no such file (a.jpg, b.jpg)'
    """
    return in_words(Counter(reason for _, reason in refused), examples(refused))
