"""Overrides: parameters of one run that differ from params.yaml, checked before the run begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from csdn.params import Params, leaves, parse_params
from csdn.runtime.documents import check_values, parse_yaml
from csdn.runtime.errors import UserError

# A run must not choose itself who is tested, by which rule, and where data comes from.
FORBIDDEN = (
    *("data", "gate", "retrain", "registry", "ingest.watch", "ingest.store"),
    *("evaluation.protocol", "evaluation.trials", "evaluation.mode", "evaluation.shots"),
)


def allowed(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides as {dotted key: value}. Raises UserError naming each key that a run must not override."""
    check_values(overrides, "overrides")
    values = dict(leaves(overrides))
    forbidden = [
        key for key in values if any(key == name or key.startswith(f"{name}.") for name in FORBIDDEN)
    ]
    if forbidden:
        lines = [f"  {key}: not for one run; change params.yaml and commit it" for key in forbidden]
        raise UserError("\n".join(["overrides: not usable", *lines]))
    return values


def overridden(overrides: Mapping[str, Any], params: str | bytes) -> Params:
    """The parameters of a params.yaml's text with the overrides applied. Raises UserError."""
    values = allowed(overrides)
    raw = parse_yaml(params, "params.yaml")
    if isinstance(raw, dict):
        for key, value in values.items():
            _set(raw, key, value)
    return parse_params(raw, source="params.yaml with the overrides" if values else "params.yaml")


def _set(raw: Any, key: str, value: Any) -> None:
    *path, last = key.split(".")
    section = raw
    for name in path:
        inner = section.get(name)
        section[name] = section = inner if isinstance(inner, dict) else {}
    section[last] = value
