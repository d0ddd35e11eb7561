"""Lists and tables that people write: the one door through which their text comes in."""

from __future__ import annotations

import codecs
import io

from csdn.errors import UserError


def read_text(data: bytes, where: str) -> str:
    """The text of a list or a table, with line ends as "\\n".

    UTF-8, with or without a byte-order mark, or UTF-16 with one, as editors on Windows save it. `where` names
    the file in the UserError.
    """
    encoding = "UTF-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "UTF-8"
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{where}, line {line}: not {encoding} text "
            f"(byte {error.object[error.start]:#04x}); save the file as UTF-8"
        ) from None
    return io.StringIO(text, newline=None).read()


def delimiter_of(text: str) -> str:
    """What separates the columns of a table: a comma, or what spreadsheets of some countries put instead.

    >>> delimiter_of("path;person"), delimiter_of("path,a;b"), delimiter_of("path")
    (';', ',', ',')
    """
    head = text.partition("\n")[0]
    return next((letter for letter in ",;\t" if letter in head), ",")
