"""Escaping of names from drops (for terminals, Markdown, pages), and removal of credentials."""

from __future__ import annotations

import re

# User information before an @, as in https://key:secret@host, or a query, as in a signed link.
_CREDENTIALS = re.compile(r"[a-z0-9+.-]+://([^@]*:[^@]*@|[^/]*@|.*\?)", re.IGNORECASE)
# In the address of an object store @, : and ? are characters of a key like others. Before the first slash is
# the bucket, whose name has none of them; a secret of Amazon's may contain a slash.
_STORE = r"(?:s3a?|gs|az|memory)://"
_USER_OF_STORE = r"(?:[^/@:?\s]*:\S*@|[^/\s]*@)"
_SIGNATURE = r"\?(?=\S*(?:sig|signature|token|secret|password|credential|key)[^=/&\s]*=)"
_STORE_CREDENTIALS = re.compile(rf"{_STORE}(?:{_USER_OF_STORE}|[^/]*\?|\S*{_SIGNATURE})", re.IGNORECASE)
_IS_STORE = re.compile(_STORE, re.IGNORECASE)
# Syntax of Markdown and HTML, and the characters by which an address becomes a link.
_MARKDOWN_SYNTAX = re.compile(r"[\\`*_\[\]<>|&~$@]|(?<=:)/|(?<=www)\.")

# Credentials inside a text. Names of stored objects may contain a question mark; elsewhere a secret may
# follow it.
_USER_IN_TEXT = re.compile(r"(?<=://)[^/?#\s]*@|(?<=s3://)[^/@:?\s]*:\S*@", re.IGNORECASE)
_QUERY_IN_TEXT = re.compile(
    r"\b((?!(?:s3a?|gs|az|memory):)[a-z][a-z0-9+.-]*://[^\s?#]*[?#])[^\s`'\")>]+", re.IGNORECASE
)
_SIGNATURE_IN_TEXT = re.compile(rf"\b({_STORE}[^\s?]*{_SIGNATURE})[^\s`'\")>]+", re.IGNORECASE)


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


def as_markdown(text: str) -> str:
    r"""A text within a line of Markdown, where it gives no markup, no tag and no link.

    >>> as_markdown("north|gate <b>")
    'north\\|gate \\<b\\>'
    """
    return _MARKDOWN_SYNTAX.sub(lambda found: f"\\{found[0]}", escape_control_chars(text))


def has_credentials(address: str) -> bool:
    """Whether an address has a user name, a password or a signature, which must not get into Git or logs.

    >>> has_credentials("s3://key:secret@bucket/in"), has_credentials("s3://bucket/10:15@north?")
    (True, False)
    """
    pattern = _STORE_CREDENTIALS if _IS_STORE.match(address) else _CREDENTIALS
    return pattern.match(address) is not None


def redact(address: str) -> str:
    """The address without its credentials; an address that has none is unchanged.

    >>> redact("s3://key:secret@bucket/in"), redact("s3://key:sec?ret@bucket/in")
    ('s3://***@bucket/in', 's3://***')
    """
    if not has_credentials(address):
        return address
    scheme, _, rest = address.partition("://")
    place, query, _ = rest.partition("?")
    if "@" in rest and "@" not in place and ":" in place.partition("/")[0]:  # a secret with a question mark
        return f"{scheme}://***"
    _, at, place = place.rpartition("@")
    return f"{scheme}://{'***@' if at else ''}{place}{'?***' if query else ''}"


def redact_text(text: str) -> str:
    """A text, such as another program's output, without the credentials of the addresses in it.

    >>> redact_text("no answer from https://ana:secret@host/in?token=secret")
    'no answer from https://***@host/in?***'
    """
    text = _USER_IN_TEXT.sub("***@", text)
    return _SIGNATURE_IN_TEXT.sub(r"\1***", _QUERY_IN_TEXT.sub(r"\1***", text))


def escape_tags(text: str, keep: str = "") -> str:
    """`escape_control_chars` for pages whose writer does not escape HTML: the text has no < and no >.

    >>> escape_tags("</script>")
    '‹/script›'
    """
    return escape_control_chars(text, keep).replace("<", "‹").replace(">", "›")
