"""`csdn preset NAME`: the values of NAME.yaml beside this file, written into params.yaml; comments stay.

A preset names its size, published.yaml or small.yaml (model and training), and values of its own (data and
protocol). `--small` takes the small size instead, for a run in a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from csdn.params import load_params
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_write

FOLDER = Path(__file__).parent
SIZES = ("published", "small")


def names() -> list[str]:
    """The presets that there are."""
    return sorted({path.stem for path in FOLDER.glob("*.yaml")} - set(SIZES))


def values(name: str, small: bool = False) -> Any:
    """What a preset sets, as nested mappings; raises UserError for an unknown one."""
    if name not in names():
        raise UserError(f"no preset is called {name!r}; there are: {', '.join(names())}")
    preset = _read(name)
    merged = _read("small" if small else preset["size"])
    for section, own in preset["values"].items():
        # The small CLIP has its own stem and size: what a preset says of the model is for the published one.
        if not (small and section == "model"):
            merged.setdefault(section, {}).update(own)
    return merged


def apply_preset(name: str, params_path: str | Path = "params.yaml", small: bool = False) -> list[str]:
    """Edit a parameter file in place; returns a line for each value that changed, and what to do next.

    Values that the preset does not name stay. Raises UserError for an unknown preset and for a file that is
    missing or not usable; the file is then as it was.
    """
    path = Path(params_path)
    load_params(path)
    params, preset = _round_trip().load(path), values(name, small)
    changes = [f"{key}: {_shown(old)} -> {_shown(new)}" for key, old, new in _assign(params, preset)]
    if not changes:
        return [f"{path} has the values of {name!r} already"]
    with atomic_write(path) as temporary:
        _round_trip().dump(params, temporary)
    weights = params["model"]["weights"]
    if not Path(weights).is_file():
        changes.append(f"{weights} is not there yet: run `csdn fetch-clip`")
    return changes


def set_value(path: Path, key: str, value: Any) -> None:
    """Set one dotted key of a parameter file, in place."""
    params = _round_trip().load(path)
    *sections, last = key.split(".")
    section = params
    for name in sections:
        section = section[name]
    section[last] = value
    with atomic_write(path) as temporary:
        _round_trip().dump(params, temporary)


def _read(name: str) -> Any:
    return _round_trip().load(FOLDER / f"{name}.yaml")


def _round_trip() -> YAML:
    """A parser that gives back comments, order, quotes, blank lines and the spelling of numbers."""
    parser = YAML()
    parser.preserve_quotes = True
    parser.width = 4096
    return parser


def _shown(value: Any) -> str:
    return "(empty)" if value is None else str(value)


def _assign(params: Any, preset: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Set what differs; yields (key, old value, new value) of each, in the preset's order."""
    for name, value in preset.items():
        old = params.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            yield from _assign(old, value, f"{prefix}{name}.")
        elif old != value:
            yield f"{prefix}{name}", old, value
            params[name] = value
