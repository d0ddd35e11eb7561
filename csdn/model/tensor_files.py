"""Files of tensors, read so that nothing in them is ever run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from csdn.errors import UserError


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU; raises UserError for a missing file and for any other format."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not readable as safetensors: {error}") from None


def read_state_dict(path: str | Path) -> Mapping[str, Any]:
    """A state dict from safetensors or from a file of `torch.save`; its values may be other plain things.

    A pickle that holds more than tensors and plain values, and a TorchScript archive, is refused before any
    of it runs. Raises UserError.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many kinds; torch's words for a pickle advise to run it
        raise UserError(
            f"{path}: refused, as it is not a state dict of plain tensors; nothing in it was run "
            f"({type(error).__name__})"
        ) from None
    if not isinstance(values, Mapping):
        raise UserError(f"{path}: holds a {type(values).__name__}, not a state dict")
    return values
