"""Checkpoints of a training: a module and its optimiser as named tensors, the log, the position in the plan.

csdn.data.checkpoint_store keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from csdn.data.checkpoint_store import Saved
from csdn.training.log import check_tensors

Rows = list[dict[str, Any]]  # of the log


class State(Protocol):
    """Where checkpoints go: a csdn.data.checkpoint_store.CheckpointStore, or Ray Train's (csdn.cluster).

    `leaving` is true where this machine is about to be taken away: the training then saves at once.
    """

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None: ...
    def load(self) -> Saved | None: ...
    def leaving(self) -> bool: ...


def save_training(
    state: State, module: nn.Module, optimizer: Optimizer, position: tuple[int, int], rows: Rows, advice: str
) -> None:
    """Save module, optimiser, log and position in the plan: (epoch, number of the next batch).

    Raises Diverged, before anything is saved, where a tensor is not finite; advice: as in `check_tensors`.
    """
    tensors = module.state_dict(prefix="model.") | optimizer_tensors(optimizer)
    check_tensors(tensors, rows[-1], advice)
    state.save({"epoch": position[0], "step": position[1], "log": rows}, tensors)


def restore_training(state: State, module: nn.Module, optimizer: Optimizer) -> tuple[int, int, Rows]:
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
