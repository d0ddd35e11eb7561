"""Checkpoints of the authors' published implementation, converted into our network.

The architecture follows from the shapes. Tensors that are unknown, missing or of another shape are refused by
name and shape; tensors that have no effect on any output are dropped and reported. First the conversion, then
the table of names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from csdn.model.clip import clip_text_name, count_numbered, text_sizes
from csdn.model.network import CSDN, ModelConfig
from csdn.model.text import CONTEXT, LENGTH, PREFIX, SUFFIX
from csdn.model.weights import check_weights, misfits, read_state_dict, refuse, shapes, tensors_in
from csdn.runtime.errors import UserError

# Tensors of which our network keeps the first 12 token positions.
_CUT = ("text_encoder.positional_embedding", "prompt_learner1.token_suffix")


@dataclass(frozen=True)
class ImportReport:
    """Names in the checkpoint: the tensors that were used, and those that were dropped, with the reason."""

    used: tuple[str, ...]
    dropped: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.used)} tensors used, {len(self.dropped)} dropped whole or in part:"]
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.dropped.items()])


def load_published(
    state_dict_or_path: Mapping[str, Tensor] | str | Path,
    image_size: tuple[int, int] = (288, 144),
    text_heads: int | None = None,
) -> CSDN:
    """A published checkpoint as a CSDN in evaluation mode, on the CPU.

    Arguments and errors as for `import_published`, which also returns what was used and dropped.
    """
    return import_published(state_dict_or_path, image_size, text_heads)[0]


def import_published(
    source: Mapping[str, Tensor] | str | Path,
    image_size: tuple[int, int] = (288, 144),
    text_heads: int | None = None,
) -> tuple[CSDN, ImportReport]:
    """(network in evaluation mode, what was used and dropped) from a state dict or a file of one.

    Names may have the prefix "module.". image_size: (height, width) in pixels of its training. text_heads:
    heads of the text encoder, which the shapes do not tell; by default one for each 64 channels, and at least
    2. Raises UserError where a tensor is missing, unknown or of another shape, the file does not exist or
    holds anything but tensors, or the size is not a multiple of 16.
    """
    label = "checkpoint" if isinstance(source, Mapping) else str(source)
    tensors = _tensors(source if isinstance(source, Mapping) else read_state_dict(source), label)
    check_weights(label, tensors)
    config = _config(tensors, image_size, text_heads, label)
    with torch.device("meta"):  # allocates nothing until the shapes are known to be those of the file
        model = CSDN(config)
    ours = {name: published_name(name) for name in model.state_dict()}
    dropped = without_effect(tensors)
    problems = misfits(_needed(model, ours, tensors, dropped), shapes(tensors)) + _unequal_templates(tensors)
    refuse(label, problems, f"not a checkpoint of this method at {image_size[0]}x{image_size[1]} pixels:")
    model = CSDN(config)
    model.load_state_dict({name: _kept(name, tensors[theirs]) for name, theirs in ours.items()})
    used = tuple(name for name in tensors if name not in dropped)
    cut = dict.fromkeys(_CUT, f"token positions {LENGTH} and up, after end-of-text")
    return model.eval(), ImportReport(used, dropped | cut)


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
    """Shapes by published name; dropped tensors may have any shape, the context any length from 12 on."""
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
    """Problems where the two copies of the template differ: only one of them is kept."""
    lines = []
    for part in ("token_prefix", "token_suffix"):
        first, second = (tensors.get(f"prompt_learner{number}.{part}") for number in (1, 2))
        if first is not None and second is not None and not torch.equal(first.float(), second.float()):
            lines.append(f"prompt_learner2.{part}: differs from prompt_learner1.{part}")
    return lines


def _kept(name: str, tensor: Tensor) -> Tensor:
    """The part of a published tensor that our network has under `name`."""
    match name:
        case "text_encoder.prefix":
            return tensor[0]
        case "text_encoder.suffix":
            return tensor[0, : SUFFIX.stop - SUFFIX.start]
        case "text_encoder.positions":
            return tensor[:LENGTH]
    return tensor


# Names.


_STEM = {"conv1": "0", "bn1": "1", "conv2": "2", "bn2": "3", "conv3": "4", "bn3": "5"}
_NUMBER = {"visible": "1", "infrared": "2"}
_RULES = (  # our name -> published name; the first pattern that matches
    (r"layers\.layer(\d)\.", lambda m: f"image_encoder.{int(m[1]) - 1}."),
    (r"stems\.(\w+)\.(\w+)\.", lambda m: f"image_encoder{_NUMBER[m[1]]}.{_STEM[m[2]]}."),
    (r"attention_pool\.positions", lambda m: "attnpool.positional_embedding"),
    (r"attention_pool\.", lambda m: "attnpool."),
    (r"gem\.", lambda m: "classifier.GEM."),
    (r"gem_neck\.norm\.", lambda m: "classifier.BN."),
    (r"gem_neck\.", lambda m: "classifier."),
    (r"pool_neck\.norm\.", lambda m: "classifier2.BN."),
    (r"pool_neck\.", lambda m: "classifier2."),
    (r"prompts\.tokens\.(\w+)", lambda m: f"prompt_learner{_NUMBER[m[1]]}.cls_ctx"),
    (r"text_encoder\.prefix", lambda m: "prompt_learner1.token_prefix"),
    (r"text_encoder\.suffix", lambda m: "prompt_learner1.token_suffix"),
    (r"text_encoder\.(.*)", lambda m: f"text_encoder.{clip_text_name(m[1])}"),
    (r"integration\.value\.", lambda m: "attention_fusion.embedding_v.0."),
    (r"integration\.output\.", lambda m: "attention_fusion.embedding_common.0."),
)
_WITHOUT_EFFECT = {
    "attnpool.k_proj.bias": "adds the same to every score, which has no effect on the softmax",
    "attention_fusion.embedding_q.": "SII has one key, so its softmax is 1 whatever the query",
    "attention_fusion.embedding_k.": "SII has one key, so its softmax is 1 whatever the key",
    "prompt_learner2.token_": "the same as prompt_learner1's",
}


def published_name(name: str) -> str:
    """The published name of one of our tensors."""
    for pattern, replacement in _RULES:
        theirs, hits = re.subn(f"^{pattern}", replacement, name)
        if hits:
            return theirs
    raise KeyError(name)


def without_effect(names: Iterable[str]) -> dict[str, str]:
    """Those of the published `names` that have no effect on any output -> the reason."""
    return {
        name: reason for name in names for part, reason in _WITHOUT_EFFECT.items() if name.startswith(part)
    }
