"""Parameters of one run: what may differ from params.yaml, checked before anything is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from csdn.params import Params, leaves, parse_params
from csdn.runtime.documents import check_values, parse_yaml
from csdn.runtime.errors import UserError

# They decide who is tested and by which rule, and where data comes from: one run must not choose that itself.
FORBIDDEN = (
    *("data", "gate", "retrain", "registry", "ingest.watch", "ingest.store"),
    *("evaluation.protocol", "evaluation.trials", "evaluation.mode", "evaluation.shots"),
)


def allowed(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides as {dotted key: value}; raises UserError naming each key that no run may change."""
    check_values(overrides, "overrides")
    values = dict(leaves(overrides))
    wrong = [key for key in values if any(key == name or key.startswith(f"{name}.") for name in FORBIDDEN)]
    if wrong:
        lines = [f"  {key}: not for one run; change params.yaml and commit it" for key in wrong]
        raise UserError("\n".join(["overrides: not usable", *lines]))
    return values


def check_overrides(overrides: Mapping[str, Any], params: str | bytes) -> dict[str, Any]:
    """Overrides as {dotted key: value}, checked against the text of a params.yaml. Raises UserError."""
    overridden(overrides, params)
    return allowed(overrides)


def overridden(overrides: Mapping[str, Any], params: str | bytes) -> Params:
    """The parameters in a params.yaml's text with the overrides. Raises UserError."""
    values = allowed(overrides)
    raw = parse_yaml(params, "params.yaml")
    for key, value in values.items() if isinstance(raw, dict) else ():
        _set(raw, key, value)
    return parse_params(raw, source="params.yaml with the overrides" if values else "params.yaml")


def _set(raw: Any, key: str, value: Any) -> None:
    *path, last = key.split(".")
    section = raw
    for name in path:
        inner = section.get(name)
        section[name] = section = inner if isinstance(inner, dict) else {}
    section[last] = value
