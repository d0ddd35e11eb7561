"""The CLIP that a network starts from: a safetensors file of an open_clip ResNet, checked by name and shape.

open_clip takes seconds to import, so it is imported where it is used; a finished network needs none of this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from csdn.errors import UserError
from csdn.model.config import ModelConfig
from csdn.model.fit import misfits, refuse, shapes
from csdn.model.names import clip_text_name, count_numbered, text_sizes
from csdn.model.pooling import resize_positions
from csdn.model.prompts import CONTEXT, LENGTH, PREFIX, SUFFIX, TEMPLATE

BUILT_IN = "csdn-small"


@dataclass(frozen=True)
class Clip:
    """Weights of a ResNet CLIP, float32 under CLIP's names, with what their shapes do not say."""

    name: str
    sha256: str  # of the file
    tensors: Mapping[str, Tensor]
    template: Tensor  # token ids [context length] of the prompt template
    pool_heads: int
    text_heads: int
    text_activation: str

    def config(self, **chosen: Any) -> ModelConfig:
        """Of a network that starts from this CLIP; `chosen`: the fields that CLIP does not decide."""
        return ModelConfig(
            depths=tuple(count_numbered(self.tensors, rf"visual\.layer{n}\.(\d+)\.") for n in range(1, 5)),
            width=len(self.tensors["visual.conv3.weight"]),
            pool_heads=self.pool_heads,
            text_heads=self.text_heads,
            text_activation=self.text_activation,
            clip=self.name,
            clip_sha256=self.sha256,
            **text_sizes(self.tensors),
            **chosen,
        )

    def weights_for(self, model: nn.Module) -> dict[str, Tensor]:
        """This CLIP's tensors under the names of `model` (a CSDN), fitted to its image size and template."""
        embedding = self.tensors["token_embedding.weight"]
        weights = {}
        for name in model.state_dict():
            if (source := _clip_name(name)) in self.tensors:
                weights[name] = self.tensors[source]
        positions = self.tensors["visual.attnpool.positional_embedding"]
        weights["attention_pool.positions"] = resize_positions(positions, model.config.grid)
        weights["text_encoder.positions"] = self.tensors["positional_embedding"][:LENGTH]
        weights["text_encoder.prefix"] = embedding[self.template[PREFIX]]
        weights["text_encoder.suffix"] = embedding[self.template[SUFFIX]]
        return weights


def _clip_name(name: str) -> str:
    """CLIP's name of one of our tensors; for those that CLIP does not have, a name it does not have."""
    part, _, rest = name.partition(".")
    match part:
        case "stems":
            return f"visual.{rest.partition('.')[2]}"
        case "layers":
            return f"visual.{rest}"
        case "attention_pool":
            return f"visual.attnpool.{rest}"
        case "text_encoder":
            return clip_text_name(rest)
    return ""


def load_clip(name: str, weights: str | Path) -> Clip:
    """The CLIP `name` ("csdn-small" or a ResNet of open_clip, such as "RN50") from a safetensors file.

    Raises UserError where the file is missing, is no safetensors file, or holds another architecture.
    """
    path = Path(weights)
    config = open_clip_config(name)
    found = _shapes_in_file(path, name)
    check_shapes(str(path), name, found)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    vision, text = config["vision_cfg"], config["text_cfg"]
    return Clip(
        name=name,
        sha256=sha256,
        tensors={key: tensor.float() for key, tensor in load_file(path).items()},
        template=_template_ids(name),
        pool_heads=vision["width"] * 32 // vision.get("head_width", 64),
        text_heads=text["heads"],
        text_activation="quick_gelu" if _quick_gelu(name, config) else "gelu",
    )


def check_shapes(source: str, name: str, found: Mapping[str, Sequence[int]]) -> None:
    """Raises UserError naming `source` where tensors of these names and shapes are not the CLIP `name`."""
    given = {key: shape for key, shape in found.items() if key != "logit_scale"}  # it comes as [] or [1]
    refuse(
        source, misfits(_needed_shapes(open_clip_config(name)), given), f"not the weights of CLIP {name!r}:"
    )


def open_clip_config(name: str) -> dict[str, Any]:
    """open_clip's configuration of a ResNet CLIP."""
    import open_clip

    if name == BUILT_IN:
        from csdn.builtin.clip import register

        register()
    config = open_clip.get_model_config(name)
    if config is None or not isinstance(config["vision_cfg"].get("layers"), list):
        known = [BUILT_IN] + [other for other in open_clip.list_models() if other.startswith("RN")]
        reason = "not known to open_clip" if config is None else "no ResNet; only ResNet CLIPs have stems"
        raise UserError(f"CLIP {name!r}: {reason}. Choose one of: {', '.join(dict.fromkeys(known))}")
    return config


def _quick_gelu(name: str, config: Mapping[str, Any]) -> bool:
    """Was it trained with QuickGELU? open_clip's plain "RN50" does not say so, but all its weights were."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    of_tags = [open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False) for tag in tags]
    return config.get("quick_gelu", False) or (bool(of_tags) and all(of_tags))


def _shapes_in_file(path: Path, name: str) -> dict[str, list[int]]:
    """Names and shapes from the header alone."""
    if not path.is_file():
        advice = "`csdn fetch-clip` downloads it" if name != BUILT_IN else "it belongs to the package"
        raise UserError(f"{path}: no such file of CLIP weights for {name!r}; {advice}")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_slice(key).get_shape() for key in sorted(file.keys())}
    except SafetensorError:
        raise UserError(
            f"{path}: no safetensors file. Pickles (.pt, .pth, .bin) are not loaded; "
            f"`csdn fetch-clip` writes the weights of {name!r} as safetensors"
        ) from None


def _needed_shapes(config: Mapping[str, Any]) -> dict[str, list[int]]:
    import open_clip

    with torch.device("meta"):
        model = open_clip.CLIP(**config)
    return {key: shape for key, shape in shapes(model.state_dict()).items() if key != "logit_scale"}


def _template_ids(name: str) -> Tensor:
    """Token ids of the template; its words must stand where csdn.model.prompts says."""
    import open_clip

    ids = open_clip.get_tokenizer(name)([TEMPLATE])[0]
    if ids.argmax() != LENGTH - 1 or len(ids[CONTEXT].unique()) != 1:
        raise UserError(
            f"CLIP {name!r}: its tokenizer does not give {TEMPLATE!r} one token a word: {ids.tolist()}"
        )
    return ids
