"""Checkpoints of a training: a module and its optimiser as named tensors, the log, the position in the plan.

csdn.data.checkpoint_store keeps them. Stage 2 waits for a copy only; a thread writes it (`LocalState`).
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from csdn.data.checkpoint_store import OVERHEAD, CheckpointStore, Saved
from csdn.training.log import check_tensors

Rows = list[dict[str, Any]]  # of the log


# Fraction of the time that stage 2 may wait for checkpoints. To write one takes a core several times as long.
WAIT = OVERHEAD / 5


class Saves(Protocol):
    """Where checkpoints go: a csdn.data.checkpoint_store.CheckpointStore, or a `State`."""

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None: ...
    def load(self) -> Saved | None: ...


class State(Saves, Protocol):
    """Checkpoints that are written beside the training, one at a time: a `LocalState`, or Ray Train's
    (csdn.cluster).

    `save` waits until the checkpoint before is written, then for a copy of the tensors. `write_pending` tells
    whether one is being written, and raises the error of one that failed. `leaving` is true where this
    machine is about to be taken away: the training then saves at once, and `save` returns when the checkpoint
    is complete.
    """

    def write_pending(self) -> bool: ...
    def leaving(self) -> bool: ...


class LocalState:
    """The checkpoints of a training in this process, written to `store` by a thread.

    A context. Its end waits until the last checkpoint is written, as nothing else may use the store before;
    it raises the error of a write that failed, unless the block has raised one.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store
        self._thread = ThreadPoolExecutor(1)
        self._write: Future[None] | None = None

    def __enter__(self) -> LocalState:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()

    def load(self) -> Saved | None:
        return self.store.load()

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        self.wait()
        self._write = self._thread.submit(self.store.save, position, copied(tensors or {}))

    def write_pending(self) -> bool:
        if self._write is None or self._write.done():
            self.wait()
            return False
        return True

    def wait(self) -> None:
        """Wait until the last checkpoint is written; raises the error if it failed."""
        if self._write is not None:
            self._write.result()

    def leaving(self) -> bool:
        return False  # only Ray announces that


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in memory of the CPU, contiguous, which training does not change."""
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor) for name, tensor in tensors.items()
    }


def save_training(
    state: Saves, module: nn.Module, optimizer: Optimizer, position: tuple[int, int], rows: Rows, advice: str
) -> None:
    """Save module, optimiser, log and position in the plan: (epoch, number of the next batch).

    Raises Diverged, before anything is saved, where a tensor is not finite; advice: as in `check_tensors`.
    """
    tensors = module.state_dict(prefix="model.") | optimizer_tensors(optimizer)
    check_tensors(tensors, rows[-1], advice)
    state.save({"epoch": position[0], "step": position[1], "log": [*rows]}, tensors)


def restore_training(state: Saves, module: nn.Module, optimizer: Optimizer) -> tuple[int, int, Rows]:
    """Restore the last checkpoint, if any; returns (epoch, step, log) to continue from."""
    saved = state.load()
    if saved is None:
        return 0, 0, []
    position, tensors = saved
    restore_model(module, tensors)
    restore_optimizer(optimizer, tensors)
    return position["epoch"], position["step"], position["log"]


def restore_model(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors named `model.<name>`, as `module.state_dict(prefix="model.")` gives them."""
    own = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    module.load_state_dict(own)


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser as `optimizer.<parameter number>.<name>`."""
    return {
        f"optimizer.{number}.{name}": value
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; learning rates are functions of the epoch, not state."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            number, field = name.split(".")[1:]
            if value.shape == (parameter := parameters[int(number)]).shape:
                # Fused Adam pairs numbers by their place in memory: the state needs the parameter's layout.
                value = torch.empty_like(parameter).copy_(value)
            states.setdefault(int(number), {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
