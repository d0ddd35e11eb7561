"""`csdn preset NAME` writes the values of NAME.yaml in this folder into params.yaml; comments are kept.

A preset has a size, which is published.yaml or small.yaml (model and training), and its own values (data and
protocol). `--small` replaces the size by the small one, for a run of a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from csdn.params import edited, load_params, round_trip
from csdn.runtime.errors import UserError

FOLDER = Path(__file__).parent
SIZES = ("published", "small")


def names() -> list[str]:
    return sorted({path.stem for path in FOLDER.glob("*.yaml")} - set(SIZES))


def values(name: str, small: bool = False) -> Any:
    """The values of a preset, as nested mappings; UserError for an unknown preset."""
    if name not in names():
        raise UserError(f"no preset is called {name!r}; there are: {', '.join(names())}")
    preset = round_trip().load(FOLDER / f"{name}.yaml")
    size = "small" if small else preset["size"]
    merged = round_trip().load(FOLDER / f"{size}.yaml")
    for section, own in preset["values"].items():
        # The model values of a preset are for the published CLIP; the small one has its own stem and size.
        if not (small and section == "model"):
            merged.setdefault(section, {}).update(own)
    return merged


def apply_preset(name: str, params_path: str | Path = "params.yaml", small: bool = False) -> list[str]:
    """Edit a parameter file in place; returns a line for each changed value, and what to do next.

    Values that the preset does not set are kept. Raises UserError, with the file unchanged, for an unknown
    preset and for a missing or invalid file.
    """
    path = Path(params_path)
    load_params(path)
    with edited(path) as params:
        changes = [
            f"{key}: {_shown(old)} -> {_shown(new)}" for key, old, new in _assign(params, values(name, small))
        ]
    if not changes:
        return [f"{path} already has the values of {name!r}"]
    weights = params["model"]["weights"]
    if not Path(weights).is_file():
        changes.append(
            f"{weights} is missing: run `csdn fetch-clip` (at most 0.41 GB from huggingface.co; without a "
            "network: `csdn fetch-clip --from FILE`)"
        )
    return changes


def _shown(value: Any) -> str:
    return "(empty)" if value is None else str(value)


def _assign(params: Any, preset: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Set the values that differ; yields (key, old value, new value), in the order of the preset."""
    for name, value in preset.items():
        old = params.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            yield from _assign(old, value, f"{prefix}{name}.")
        elif old != value:
            yield f"{prefix}{name}", old, value
            params[name] = value
