"""State of an unfinished stage: weights, optimiser and position, so that a killed run continues exactly.

    .state/<key>/lock            held for as long as the stage runs
    .state/<key>/<n>.safetensors every tensor of the loop
    .state/<key>/state.json      position, log, and the name and hash of the tensors: it is replaced last

The key names everything that decides the result, so state of other data or parameters is never picked up.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from csdn.errors import UserError

# Raised by one whenever the same inputs and parameters would train other weights than before.
METHOD_VERSION = 1


def state_key(**parts: Any) -> str:
    """SHA-256 (64 hex digits) of everything that decides a stage's result; `parts` are JSON values."""
    text = json.dumps({"method": METHOD_VERSION, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class StageState:
    """The saved state of one stage run; open it with `open_state`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def part(self, name: str) -> StageState:
        """State of one phase, kept beside that of the others."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return StageState(folder)

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Replace the saved state; a kill at any moment leaves the old one or the new one, whole."""
        data = save_tensors({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})
        digest = hashlib.sha256(data).hexdigest()
        file = self.folder / f"{digest[:16]}.safetensors"
        _write(file, data)
        _write(
            self.folder / "state.json",
            json.dumps({"tensors": file.name, "sha256": digest, "position": position}).encode(),
        )
        for other in self.folder.glob("*.safetensors"):
            if other != file:
                other.unlink()

    def load(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """The last saved (position, tensors), or None where nothing whole was saved."""
        try:
            state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            data = (self.folder / state["tensors"]).read_bytes()
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            return None
        if hashlib.sha256(data).hexdigest() != state["sha256"]:
            return None
        return state["position"], load_tensors(data)


@contextmanager
def open_state(key: str, root: str | Path = ".state") -> Iterator[StageState]:
    """The state under `key`, locked against a second run; removed when the block ends without an error."""
    folder = Path(root) / key
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process is running this stage on the same data and parameters; "
                "wait for it to end, or stop it, then run the command again"
            ) from None
        yield StageState(folder)
        shutil.rmtree(folder)


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, torch.Tensor]:
    """State of an optimiser as named tensors: `<prefix><parameter number>.<name>`."""
    return {
        f"{prefix}{number}.{name}": value
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], prefix: str
) -> None:
    """The inverse of `optimizer_tensors`; learning rates are functions of the epoch, not state."""
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            number, _, field = name.removeprefix(prefix).partition(".")
            states.setdefault(int(number), {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def _write(path: Path, data: bytes) -> None:
    """Write whole or not at all, on disk before it gets its name."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
