"""A network and its optimiser as named tensors, for the state of an unfinished stage (csdn.state)."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers as `model.<name>`."""
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def restore_model(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `model_tensors`."""
    own = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    model.load_state_dict(own)


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
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape:
                # A fused step walks through memory: laid out otherwise, numbers of other weights would meet.
                state[name] = torch.empty_like(parameter).copy_(value)
