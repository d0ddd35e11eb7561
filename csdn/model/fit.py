"""Do these tensors fit that network? Said by name and shape, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from csdn.errors import UserError

LINES = 8


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def misfits(needed: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]) -> list[str]:
    """One line for each tensor of another shape, missing, or not known; names in the order of `needed`."""
    lines = []
    for name, shape in needed.items():
        if name not in found:
            lines.append(f"{name}: missing, {list(shape)} needed")
        elif list(found[name]) != list(shape):
            lines.append(f"{name}: {list(found[name])} found, {list(shape)} needed")
    lines += [
        f"{name}: {list(found[name])} found, no such tensor is known" for name in found if name not in needed
    ]
    return lines


def refuse(source: str, lines: Sequence[str], advice: str) -> None:
    """Raise UserError with the first of `lines` if there are any."""
    if lines:
        more = [f"  ... and {len(lines) - LINES} more"] if len(lines) > LINES else []
        raise UserError("\n".join([f"{source}: {advice}", *(f"  {line}" for line in lines[:LINES]), *more]))
