"""Escaping of names from drops (for terminals, CSV, Markdown, pages), and removal of credentials."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

# User information before an @, as in s3://key:secret@bucket, or a query, as in a signed link.
_CREDENTIALS = re.compile(r"[a-z0-9+.-]+://([^@]*:[^@]*@|[^/]*@|.*\?)", re.IGNORECASE)
# Characters that begin a formula in a spreadsheet, and the apostrophe that marks a cell as text.
_FORMULA = frozenset("=+-@'")
# In many countries a semicolon ends a cell; DVC writes cells into an HTML page without escaping them.
_CELL_SYNTAX = ";<>"
_ESCAPE = re.compile(r"\\(?:\\|[nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
# Syntax of Markdown and HTML, and the characters by which an address becomes a link.
_MARKDOWN_SYNTAX = re.compile(r"[\\`*_\[\]<>|&~$@]|(?<=:)/|(?<=www)\.")

# Credentials inside a text. S3 object names may contain a question mark; elsewhere a secret may follow it.
_USER_IN_TEXT = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY_IN_TEXT = re.compile(r"\b((?!s3:)[a-z][a-z0-9+.-]*://[^\s?#]*[?#])[^\s`'\")>]+", re.IGNORECASE)


def escape_control_chars(text: str, keep: str = "") -> str:
    r"""`text` with escapes for characters that do not print: control characters, and invisible or bidi ones.

    >>> escape_control_chars("gate\x1b[2J\n")
    'gate\\x1b[2J\\n'
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode()
        for letter in text
    )


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


def as_markdown(text: str) -> str:
    r"""A text within a line of Markdown, where it gives no markup, no tag and no link.

    >>> as_markdown("north|gate <b>")
    'north\\|gate \\<b\\>'
    """
    return _MARKDOWN_SYNTAX.sub(lambda found: f"\\{found[0]}", escape_control_chars(text))


def has_credentials(address: str) -> bool:
    """Whether an address has a user name, a password or a signature, which must not get into Git or logs.

    >>> has_credentials("s3://key:secret@bucket/in"), has_credentials("s3://bucket/in")
    (True, False)
    """
    return _CREDENTIALS.match(address) is not None


def redact(address: str) -> str:
    """The address without its credentials; an address that has none is unchanged.

    >>> redact("s3://key:secret@bucket/in")
    's3://***@bucket/in'
    """
    if not has_credentials(address):
        return address
    scheme, _, rest = address.partition("://")
    place = rest.rpartition("@")[2].partition("?")
    return f"{scheme}://{'***@' if '@' in rest else ''}{place[0]}{'?***' if place[1] else ''}"


def redact_text(text: str) -> str:
    """A text, such as another program's output, without the credentials of the addresses in it.

    >>> redact_text("no answer from https://ana:secret@host/in?token=secret")
    'no answer from https://***@host/in?***'
    """
    return _QUERY_IN_TEXT.sub(r"\1***", _USER_IN_TEXT.sub("***@", text))


def escape_tags(text: str, keep: str = "") -> str:
    """`escape_control_chars` for pages whose writer does not escape HTML: the text has no < and no >.

    >>> escape_tags("</script>")
    '‹/script›'
    """
    return escape_control_chars(text, keep).replace("<", "‹").replace(">", "›")


# ---- rejected files of a drop, as text: the reasons, how often each occurred, and its first files


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
