"""JSON and YAML that people write or may damage: whatever is wrong with a text is a UserError that names it.

YAML is version 1.2, as DVC reads and writes it: `1e-5` is a number; `no`, `on` and `yes` are texts.
"""

from __future__ import annotations

import codecs
import datetime
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from csdn.errors import UserError, machine_fault

MAX_DEPTH = 50  # of lists and mappings in each other
MAX_YAML_BYTES = 2**20  # of YAML, which is read at about 300 kB a second
_LEAVES = (str, bool, int, float, datetime.date, type(None))


def read_json(path: str | Path, advice: str = "") -> Any:
    """The value in a JSON file, checked as by `parse_json`; advice: what to do where it is missing or bad."""
    return parse_json(_bytes(path, advice), path, advice)


def read_yaml(path: str | Path, advice: str = "") -> Any:
    """The value in a YAML file, checked as by `parse_yaml`; advice: what to do where it is missing or bad."""
    return parse_yaml(_bytes(path, advice), path, advice)


def parse_json(text: str | bytes, source: str | Path, advice: str = "") -> Any:
    """The value of a JSON text that is called `source` in the UserError.

    Refused, too: doubled keys, NaN and infinity, and what `check_values` refuses.
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
    """The value of a YAML 1.2 text that is called `source` in the UserError.

    Refused, too: doubled keys, aliases, tags of objects, directives, several documents, more than
    MAX_YAML_BYTES, and what `check_values` refuses.
    """
    # Imported here: csdn.model, which reads JSON, works without the pipeline's packages.
    from ruamel.yaml import YAML, YAMLError
    from ruamel.yaml.events import AliasEvent

    try:
        decoded = _decoded(text)
        if len(decoded) > MAX_YAML_BYTES:
            raise ValueError(f"more than {MAX_YAML_BYTES} characters")
        if re.search("^%", decoded, re.MULTILINE):
            raise ValueError("a line begins with %; directives are not taken")
        # Before anything is built: aliases of aliases make a few lines of text a value of gigabytes.
        if "*" in decoded and any(isinstance(event, AliasEvent) for event in _yaml(YAML).parse(decoded)):
            raise ValueError("aliases (*name) are not taken; write the value where it is needed")
        value = _yaml(YAML).load(decoded)
    except RecursionError:
        raise UserError(_with(f"{source}: nested more than {MAX_DEPTH} deep", advice)) from None
    except YAMLError as error:
        raise UserError(_with(f"{source} is not valid YAML: {_yaml_problem(error)}", advice)) from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # ruamel.yaml's, of a date or a number that cannot be, and of a tag that does not fit its value
        raise UserError(_with(f"{source} is not valid YAML: {error}", advice)) from None
    check_values(value, source, advice)
    return value


def check_values(value: Any, source: str | Path, advice: str = "") -> None:
    """Raise UserError at what no file of ours holds, and what would fail or do harm far from here.

    That is: depth beyond MAX_DEPTH, integers beyond 64 bits, numbers that are not finite, NUL and lone
    surrogates in texts, and in YAML keys that are no texts and values of other types.
    """
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while waiting:
        place, value = waiting.pop()
        if problem := _problem(value, len(place)):
            where = f"{source}: {'.'.join(map(str, place))[:200]}" if place else str(source)
            raise UserError(_with(f"{where}: {problem}", advice))
        if isinstance(value, dict):
            waiting += [((*place, key), inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [((*place, number), inner) for number, inner in enumerate(value)]


@contextmanager
def expected_in(source: str | Path, advice: str) -> Iterator[None]:
    """Makes a UserError of what the block raises where a file has other keys or types than it looks for."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{source}: does not hold what it should ({reason}); {advice}") from None


def _bytes(path: str | Path, advice: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(_with(f"{path}: no such file", advice)) from None
    except OSError as error:
        fault = machine_fault(error) or f"{path}: cannot be read ({error.strerror})"
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
    return kind(typ="safe", pure=True)  # not the C parser: its errors and limits are others


def _yaml_problem(error: Any) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _problem(value: Any, depth: int) -> str | None:
    """What is wrong with one value, without a look into what it holds."""
    if isinstance(value, dict | list | tuple):
        if depth >= MAX_DEPTH:
            return f"nested more than {MAX_DEPTH} deep"
        texts = value if isinstance(value, dict) else ()
        if other := [key for key in texts if not isinstance(key, str)]:
            return f"the key {other[0]!r} is no text; write it in quotes"
    elif not isinstance(value, _LEAVES):
        return f"a value of type {type(value).__name__} is not taken"
    else:
        texts = (value,) if isinstance(value, str) else ()
    for text in texts:
        if re.search("[\0\ud800-\udfff]", text):
            return f"{ascii(text)[:100]} has a character that no text may have (NUL or half of a pair)"
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return "an integer beyond 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    return None
