"""What pydantic finds wrong with a file, as lines for its author: the key, its value, and what is allowed."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

SHOWN = 200  # characters of a wrong value


def mistakes(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """A line for each mistake in what was to be a `model`."""
    return [f"  {_mistake(one, model)}" for one in error.errors()]


def _mistake(error: Any, model: type[BaseModel]) -> str:
    location, kind = error["loc"], error["type"]
    key = ".".join(map(str, location))
    if kind == "extra_forbidden":
        allowed = _model_at(location[:-1], model).model_fields
        near = "".join(f"the nearest is {one}; " for one in get_close_matches(str(location[-1]), allowed, 1))
        return f"{key}: unknown key; {near}allowed here: {', '.join(allowed)}"
    if kind == "missing":
        return f"{key}: missing"
    if kind == "model_type" and not location:
        return "the file is no mapping; expected the keys " + ", ".join(model.model_fields)
    message = error["msg"].removeprefix("Value error, ")
    if not location:
        return message
    # A credential is what must not be shown; what is wrong with a whole section names its values itself.
    if kind == "credentials" or isinstance(error["input"], dict):
        return f"{key}: {message}"
    given = repr(error["input"])
    return f"{key} = {given if len(given) <= SHOWN else given[:SHOWN] + '...'}: {message}"


def _model_at(location: tuple[Any, ...], model: type[BaseModel]) -> type[BaseModel]:
    """The model of the section at a place below `model`; it may be one that can be None."""
    for name in location:
        annotation = model.model_fields[name].annotation
        (model,) = (one for one in get_args(annotation) or [annotation] if one is not type(None))
    return model
