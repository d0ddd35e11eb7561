"""Strict reading of JSON, YAML and text files; anything wrong with one is a UserError that names the file.

YAML is version 1.2, as DVC reads and writes it: `1e-5` is a number; `no`, `on` and `yes` are texts.
"""

from __future__ import annotations

import codecs
import datetime
import io
import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from csdn.runtime.errors import UserError, explain_os_error

MAX_DEPTH = 50  # of nested lists and mappings
MAX_YAML_BYTES = 2**20  # YAML is parsed at about 300 kB a second
_LEAVES = (str, bool, int, float, datetime.date, type(None))


def read_json(path: str | Path, advice: str = "") -> Any:
    """The value in a JSON file, checked by `parse_json`; advice: what to do if it is missing or invalid."""
    return parse_json(_bytes(path, advice), path, advice)


def read_yaml(path: str | Path, advice: str = "") -> Any:
    """The value in a YAML file, checked by `parse_yaml`; advice: what to do if it is missing or invalid."""
    return parse_yaml(_bytes(path, advice), path, advice)


def parse_json(text: str | bytes, source: str | Path, advice: str = "") -> Any:
    """The value of a JSON text; `source` names it in the UserError.

    Duplicate keys, NaN, infinity, and whatever `check_values` rejects are errors.
    """
    try:
        value = json.loads(
            _decoded(text), object_pairs_hook=_unique, parse_constant=_no_number, parse_int=_integer
        )
    except RecursionError:
        raise UserError(_with(f"{source}: nested more than {MAX_DEPTH} deep", advice)) from None
    except ValueError as error:
        raise UserError(_with(f"{source} is not valid JSON: {error}", advice)) from None
    check_values(value, source, advice)
    return value


def parse_yaml(text: str | bytes, source: str | Path, advice: str = "") -> Any:
    """The value of a YAML 1.2 text; `source` names it in the UserError.

    Duplicate keys, aliases, object tags, directives, several documents, more than MAX_YAML_BYTES, and
    whatever `check_values` rejects are errors.
    """
    # Imported here: csdn.model reads JSON and works without the packages of the pipeline.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.events import AliasEvent

    try:
        decoded = _decoded(text)
        if len(decoded) > MAX_YAML_BYTES:
            raise ValueError(f"more than {MAX_YAML_BYTES} characters")
        if re.search("^%", decoded, re.MULTILINE):
            raise ValueError("a line begins with %; directives are not allowed")
        # Checked before anything is built: nested aliases expand a few lines to gigabytes.
        if "*" in decoded and any(isinstance(event, AliasEvent) for event in _yaml(YAML).parse(decoded)):
            raise ValueError("aliases (*name) are not allowed; write the value where it is needed")
        value = _yaml(YAML).load(decoded)
    except RecursionError:
        raise UserError(_with(f"{source}: nested more than {MAX_DEPTH} deep", advice)) from None
    except YAMLError as error:
        raise UserError(_with(f"{source} is not valid YAML: {_yaml_problem(error)}", advice)) from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # raised by ruamel.yaml for impossible dates and numbers, and for a tag that does not fit its value
        raise UserError(_with(f"{source} is not valid YAML: {error}", advice)) from None
    check_values(value, source, advice)
    return value


def check_values(value: Any, source: str | Path, advice: str = "") -> None:
    """Raise UserError for values that no valid file has and that would fail later, elsewhere.

    These are: nesting beyond MAX_DEPTH, integers beyond 64 bits, NaN and infinity, NUL and lone surrogates in
    texts, keys that are not texts, and values of types that JSON does not have (but dates are allowed).
    """
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while waiting:
        keys, value = waiting.pop()
        if problem := _problem(value, len(keys)):
            where = f"{source}: {'.'.join(map(str, keys))[:200]}" if keys else str(source)
            raise UserError(_with(f"{where}: {problem}", advice))
        if isinstance(value, dict):
            waiting += [((*keys, key), inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [((*keys, number), inner) for number, inner in enumerate(value)]


@contextmanager
def expected_in(source: str | Path, advice: str) -> Iterator[None]:
    """Raise a UserError if the block fails because the file lacks a key or has a value of another type."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{source}: does not have the expected content ({reason}); {advice}") from None


def _bytes(path: str | Path, advice: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(_with(f"{path}: no such file", advice)) from None
    except OSError as error:
        fault = explain_os_error(error) or f"{path}: cannot be read ({error.strerror})"
        raise UserError(_with(fault, advice)) from None


def _decoded(text: str | bytes) -> str:
    """The text without a byte-order mark. It needs no codec that Python would load only now."""
    return text.removeprefix(codecs.BOM_UTF8).decode() if isinstance(text, bytes) else text


def _with(problem: str, advice: str) -> str:
    return f"{problem}; {advice}" if advice else problem


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} is there twice")
        values[key] = value
    return values


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"the integer {digits[:20]}... has {len(digits)} digits, more than 64 bits hold")
    return int(digits)


def _yaml(kind: Any) -> Any:
    return kind(typ="safe", pure=True)  # the C parser has other errors and limits


def _yaml_problem(error: Any) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _problem(value: Any, depth: int) -> str | None:
    """What is wrong with one value, apart from the values inside it."""
    if isinstance(value, dict | list | tuple):
        if depth >= MAX_DEPTH:
            return f"nested more than {MAX_DEPTH} deep"
        texts: Iterable[Any] = value if isinstance(value, dict) else ()
        if other := [key for key in texts if not isinstance(key, str)]:
            return f"the key {other[0]!r} is not a text; write it in quotes"
    elif not isinstance(value, _LEAVES):
        return f"a value of type {type(value).__name__} is not allowed"
    else:
        texts = (value,) if isinstance(value, str) else ()
    for text in texts:
        if re.search("[\0\ud800-\udfff]", text):
            return f"{ascii(text)[:100]} has a character that is not allowed (NUL or a lone surrogate)"
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return "an integer beyond 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    return None


# ---- lists and tables that people write


def read_text(data: bytes, where: str) -> str:
    """The text of a list or a table, with "\\n" as line end.

    Accepts UTF-8, with or without a byte-order mark, and UTF-16 with one, as editors on Windows write it.
    `where` names the file in the UserError.
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
    """The separator of a table's columns: a comma, or the semicolon or tab of some spreadsheets.

    >>> delimiter_of("path;person"), delimiter_of("path,a;b"), delimiter_of("path")
    (';', ',', ',')
    """
    head = text.partition("\n")[0]
    return next((letter for letter in ",;\t" if letter in head), ",")
