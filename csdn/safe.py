"""What may be shown and kept: names that cannot steer a terminal, addresses without a password in them."""

from __future__ import annotations

import re

# A colon before an @, as in s3://key:secret@bucket, or a query, as in a signed link.
_CREDENTIALS = re.compile(r"[a-z0-9+.-]+://([^@]*:[^@]*@|[^/]*@|.*\?)", re.IGNORECASE)

# The same inside a text. Names of S3's objects may have a question mark; elsewhere a secret may follow it.
_USER_IN_TEXT = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY_IN_TEXT = re.compile(r"\b((?!s3:)[a-z][a-z0-9+.-]*://[^\s?#]*[?#])[^\s`'\")>]+", re.IGNORECASE)


def printable(text: str, keep: str = "") -> str:
    r"""`text` with escapes for what does not print: control characters, and those that hide or turn text.

    >>> printable("gate\x1b[2J\n")
    'gate\\x1b[2J\\n'
    """
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode()
        for letter in text
    )


def has_credentials(address: str) -> bool:
    """Whether an address carries a name, a password or a signature: it would end in Git, logs and reports.

    >>> has_credentials("s3://key:secret@bucket/in"), has_credentials("s3://bucket/in")
    (True, False)
    """
    return _CREDENTIALS.match(address) is not None


def without_credentials(address: str) -> str:
    """The address as it may be shown; one that carries nothing secret is itself.

    >>> without_credentials("s3://key:secret@bucket/in")
    's3://***@bucket/in'
    """
    if not has_credentials(address):
        return address
    scheme, _, rest = address.partition("://")
    place = rest.rpartition("@")[2].partition("?")
    return f"{scheme}://{'***@' if '@' in rest else ''}{place[0]}{'?***' if place[1] else ''}"


def redacted(text: str) -> str:
    """A text, such as another program's words, whose addresses may be shown.

    >>> redacted("no answer from https://ana:secret@host/in?token=secret")
    'no answer from https://***@host/in?***'
    """
    return _QUERY_IN_TEXT.sub(r"\1***", _USER_IN_TEXT.sub("***@", text))


def unmarked(name: str) -> str:
    """A name for a page that somebody else writes without care: it can neither begin nor end a tag.

    >>> unmarked("</script>")
    '‹/script›'
    """
    return printable(name).replace("<", "‹").replace(">", "›")
