"""Pickles that would be noticed: loading one makes a file."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import torch


class Trap:
    """Unpickling it makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def pickles(marker: Path) -> dict[str, bytes]:
    """One file of each kind that runs code, or may hold some, when it is loaded without care."""
    trap = Trap(marker)
    return {
        "a plain pickle": pickle.dumps(trap),
        "a file of torch.save": _saved({"weight": trap}),
        "a file of torch.save of old": _saved({"weight": trap}, _use_new_zipfile_serialization=False),
        "a TorchScript archive": _scripted(),
    }


def _saved(value: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.zeros(1)), buffer)
    return buffer.getvalue()
