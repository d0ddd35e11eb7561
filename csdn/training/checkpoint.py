"""Checkpoints of a training: network and optimiser as named tensors, and where checkpoints are found.

`CheckpointStore` continues from the furthest checkpoint of all runs of a stage, on this machine or on a
cluster. Each run on Ray keeps the checkpoints of its workers in a folder of its own, an attempt: below the
stage's state, or in `scaling.checkpoint_dir` below the clone's name and the state's key. The lock of the
state covers both; clones that share a storage never read or remove each other's attempts; and a worker that
outlives its run writes to its own attempt only. The files of a checkpoint are those of a saved state
(csdn.data.state).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from pyarrow import fs
from torch import Tensor

from csdn.data.state import StageState, clone_name, saved_files, saved_position
from csdn.data.storage import arrow_filesystem
from csdn.training.log import check_tensors

Saved = tuple[dict[str, Any], dict[str, Tensor]]  # position, tensors
Rows = list[dict[str, Any]]  # of the log


class State(Protocol):
    """Where checkpoints go; csdn.data.state.StageState is one.

    `leaving` is true where this machine is about to be taken away: the training then saves at once.
    """

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None: ...
    def load(self) -> Saved | None: ...
    def leaving(self) -> bool: ...


def save_training(
    state: State,
    tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    position: tuple[int, int],
    rows: Rows,
    advice: str,
) -> None:
    """Save tensors, optimiser, log and position in the plan: (epoch, number of the next batch).

    Raises Diverged, before anything is saved, where a tensor is not finite; advice: as in `check_tensors`.
    """
    tensors = {**tensors, **optimizer_tensors(optimizer, "optimizer.")}
    check_tensors(tensors, rows[-1], advice)
    state.save({"epoch": position[0], "step": position[1], "log": rows}, tensors)


def restore_training(
    state: State, restore: Callable[[Mapping[str, Tensor]], None], optimizer: torch.optim.Optimizer
) -> tuple[int, int, Rows]:
    """(epoch, step, log) to continue from; `restore` gets the tensors of the last checkpoint, if any."""
    saved = state.load()
    if saved is None:
        return 0, 0, []
    position, tensors = saved
    restore(tensors)
    restore_optimizer(optimizer, tensors, "optimizer.")
    return position["epoch"], position["step"], position["log"]


def model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers as `model.<name>`."""
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def restore_model(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `model_tensors`."""
    own = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    model.load_state_dict(own)


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, torch.Tensor]:
    """The state of an optimiser as named tensors: `<prefix><parameter number>.<name>`."""
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
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape:
                # Fused Adam pairs numbers by their place in memory, so the state needs the parameter's
                # layout.
                state[name] = torch.empty_like(parameter).copy_(value)


class CheckpointStore:
    """A stage's state, and the attempts in `folder` of `filesystem`.

    `save` writes to the state. Raises UserError where the storage does not respond or denies access.
    """

    def __init__(self, state: StageState, storage: str | None) -> None:
        self.state = state
        self.filesystem, root = _filesystem(storage or str(state.folder / "attempts"))
        if storage:
            root = f"{root}/{clone_name(state.folder.parent)}/{state.folder.name[:16]}"
        self.folder = root
        self._loaded = ""  # the folder of the checkpoint that `load` returned

    def load(self) -> Saved | None:
        """(position, tensors) of the furthest complete checkpoint; None where there is none."""
        readers = {folder: partial(self._read, folder) for folder in self._checkpoints()}
        readers[""] = lambda name: (self.state.folder / name).read_bytes()
        positions = {folder: saved_position(read) for folder, read in readers.items()}
        found = [folder for folder, position in positions.items() if position]
        progress = {folder: (positions[folder]["epoch"], positions[folder]["step"]) for folder in found}
        for folder in sorted(found, key=progress.get, reverse=True):
            if saved := saved_files(readers[folder]):
                self._loaded = folder
                return saved
        return None

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        self.state.save(position, tensors)

    def leaving(self) -> bool:
        return self.state.leaving()

    def forget_others(self) -> None:
        """Remove every attempt except the loaded one, which bounds storage."""
        for entry in self.filesystem.get_file_info(fs.FileSelector(self.folder, allow_not_found=True)):
            if not self._loaded.startswith(f"{entry.path}/"):
                self.filesystem.delete_dir(entry.path)

    def remove(self) -> None:
        """Remove all attempts, when the stage's result is written."""
        if self.filesystem.get_file_info(self.folder).type == fs.FileType.Directory:
            self.filesystem.delete_dir(self.folder)

    def _checkpoints(self) -> Iterator[str]:
        selector = fs.FileSelector(self.folder, recursive=True, allow_not_found=True)
        for file in self.filesystem.get_file_info(selector):
            if file.base_name == "state.json":
                yield file.path.rpartition("/")[0]

    def _read(self, folder: str, name: str) -> bytes:
        with self.filesystem.open_input_stream(f"{folder}/{name}") as file:
            return file.read()


def _filesystem(storage: str) -> tuple[fs.FileSystem, str]:
    if "://" in storage:
        return arrow_filesystem(storage)
    return fs.LocalFileSystem(), str(Path(storage).absolute())
