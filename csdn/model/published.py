"""Checkpoints of the published implementation, brought into our network.

The architecture follows from the shapes. What is not known, missing, or of another shape is refused by name
and shape; what has no effect is dropped, and said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from csdn.errors import UserError
from csdn.model.config import ModelConfig
from csdn.model.fit import misfits, refuse, shapes
from csdn.model.names import count_numbered, text_sizes
from csdn.model.network import CSDN
from csdn.model.prompts import CONTEXT, LENGTH, PREFIX, SUFFIX
from csdn.model.published_names import published_name, without_effect
from csdn.model.tensor_files import check_weights, read_state_dict, tensors_in

# Tensors of which our network keeps the first 12 token positions.
_CUT = ("text_encoder.positional_embedding", "prompt_learner1.token_suffix")


@dataclass(frozen=True)
class ImportReport:
    """Names in the checkpoint: what was taken, and what was dropped with the reason."""

    taken: tuple[str, ...]
    dropped: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} tensors taken, {len(self.dropped)} dropped whole or in part:"]
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.dropped.items()])


def load_published(
    state_dict_or_path: Mapping[str, Tensor] | str | Path,
    image_size: tuple[int, int] = (288, 144),
    text_heads: int | None = None,
) -> CSDN:
    """A published checkpoint as a CSDN in evaluation mode, on the CPU.

    Arguments and errors as for `import_published`, which also says what was taken and dropped.
    """
    return import_published(state_dict_or_path, image_size, text_heads)[0]


def import_published(
    source: Mapping[str, Tensor] | str | Path,
    image_size: tuple[int, int] = (288, 144),
    text_heads: int | None = None,
) -> tuple[CSDN, ImportReport]:
    """(network in evaluation mode, what was taken and dropped) from a state dict or a file of one.

    Names may begin with "module.". image_size: (height, width) in pixels that it was trained at. text_heads:
    heads of the text encoder, which no shape tells; by default one for each 64 channels, and at least 2.
    Raises UserError where a tensor is missing, not known or of another shape, the file is not there or holds
    anything but tensors, or the size is not of multiples of 16.
    """
    label = "checkpoint" if isinstance(source, Mapping) else str(source)
    tensors = _tensors(source if isinstance(source, Mapping) else read_state_dict(source), label)
    check_weights(label, tensors)
    config = _config(tensors, image_size, text_heads, label)
    with torch.device("meta"):  # no memory before the shapes are known to be the file's
        model = CSDN(config)
    ours = {name: published_name(name) for name in model.state_dict()}
    dropped = without_effect(tensors)
    problems = misfits(_needed(model, ours, tensors, dropped), shapes(tensors)) + _unequal_templates(tensors)
    refuse(label, problems, f"not a checkpoint of this method at {image_size[0]}x{image_size[1]} pixels:")
    model = CSDN(config)
    model.load_state_dict({name: _kept(name, tensors[theirs]) for name, theirs in ours.items()})
    taken = tuple(name for name in tensors if name not in dropped)
    behind = dict.fromkeys(_CUT, f"token positions {LENGTH} and up, behind end-of-text")
    return model.eval(), ImportReport(taken, dropped | behind)


def _tensors(values: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    tensors = tensors_in(values, label)
    if others := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{label}: not a state dict; no tensors are {', '.join(others[:8])}")
    return {name: value.detach() for name, value in tensors.items()}


def _config(
    tensors: Mapping[str, Tensor], image_size: tuple[int, int], text_heads: int | None, label: str
) -> ModelConfig:
    try:
        sizes = text_sizes(tensors, "text_encoder.")
        width = len(tensors["image_encoder1.4.weight"])
        identities = len(tensors["classifier.classifier.weight"])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{label}: not a checkpoint of this method; missing or misshapen: {error}") from None
    return ModelConfig(
        identities=identities,
        image_size=(image_size[0], image_size[1]),
        depths=tuple(max(1, count_numbered(tensors, rf"image_encoder\.{n}\.(\d+)\.conv1")) for n in range(4)),
        width=width,
        pool_heads=width * 32 // 64,
        text_heads=text_heads or max(2, sizes["text_width"] // 64),
        stem="published",
        **sizes,
    )


def _needed(
    model: CSDN, ours: Mapping[str, str], tensors: Mapping[str, Tensor], dropped: Mapping[str, str]
) -> dict[str, list[int]]:
    """Shapes by published name; what is dropped may have any, and the context any length from 12 on."""
    state = model.state_dict()
    needed = {theirs: list(state[name].shape) for name, theirs in ours.items()}
    needed |= {name: list(tensors[name].shape) for name in dropped}
    positions = tensors.get("text_encoder.positional_embedding", torch.empty(LENGTH, 0))
    context = max([LENGTH, *positions.shape[:1]])
    width = model.config.text_width
    needed["text_encoder.positional_embedding"] = [context, width]
    needed["prompt_learner1.token_prefix"] = [1, PREFIX.stop, width]
    needed["prompt_learner1.token_suffix"] = [1, context - CONTEXT.stop, width]
    return needed


def _unequal_templates(tensors: Mapping[str, Tensor]) -> list[str]:
    """The text around the tokens is one template; only then does dropping the second copy lose nothing."""
    lines = []
    for part in ("token_prefix", "token_suffix"):
        first, second = (tensors.get(f"prompt_learner{number}.{part}") for number in (1, 2))
        if first is not None and second is not None and not torch.equal(first.float(), second.float()):
            lines.append(f"prompt_learner2.{part}: differs from prompt_learner1.{part}")
    return lines


def _kept(name: str, tensor: Tensor) -> Tensor:
    """Of a published tensor what our network has under `name`."""
    match name:
        case "text_encoder.prefix":
            return tensor[0]
        case "text_encoder.suffix":
            return tensor[0, : SUFFIX.stop - SUFFIX.start]
        case "text_encoder.positions":
            return tensor[:LENGTH]
    return tensor
