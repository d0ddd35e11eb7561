"""The CLIP that a network starts from: safetensors of an open_clip ResNet, checked by name and shape."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from csdn.errors import UserError
from csdn.model.clip_facts import ClipFacts, facts_in
from csdn.model.clip_models import BUILT_IN, check_shapes, facts_of
from csdn.model.config import ModelConfig
from csdn.model.names import clip_text_name, count_numbered, text_sizes
from csdn.model.pooling import resize_positions
from csdn.model.prompts import LENGTH, PREFIX, SUFFIX
from csdn.model.tensor_files import check_weights, mistaken_for_weights, read_safetensors


@dataclass(frozen=True)
class Clip:
    """Weights of a ResNet CLIP, float32 under CLIP's names, with what their shapes do not say."""

    facts: ClipFacts
    sha256: str  # of the file
    tensors: Mapping[str, Tensor]

    def config(self, **chosen: Any) -> ModelConfig:
        """Of a network that starts from this CLIP; `chosen`: the fields that CLIP does not decide."""
        return ModelConfig(
            depths=tuple(count_numbered(self.tensors, rf"visual\.layer{n}\.(\d+)\.") for n in range(1, 5)),
            width=len(self.tensors["visual.conv3.weight"]),
            pool_heads=self.facts.pool_heads,
            text_heads=self.facts.text_heads,
            text_activation=self.facts.text_activation,
            clip=self.facts.name,
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
        weights["text_encoder.prefix"] = embedding[list(self.facts.template[PREFIX])]
        weights["text_encoder.suffix"] = embedding[list(self.facts.template[SUFFIX])]
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
    said, found = _read_header(path, name)
    facts = facts_in(said, name, found)
    if facts is None:
        facts = facts_of(name)
        check_shapes(str(path), name, found)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    tensors = read_safetensors(path)
    check_weights(str(path), tensors)
    return Clip(facts, sha256, {key: tensor.float() for key, tensor in tensors.items()})


def _read_header(path: Path, name: str) -> tuple[dict[str, str] | None, dict[str, list[int]]]:
    """(what the file says of itself, shapes of its tensors by name)."""
    if not path.is_file():
        advice = "`csdn fetch-clip` downloads it" if name != BUILT_IN else "it belongs to the package"
        raise UserError(f"{path}: no such file of CLIP weights for {name!r}; {advice}")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata(), {key: file.get_slice(key).get_shape() for key in sorted(file.keys())}
    except SafetensorError:
        kind = mistaken_for_weights(path)
        raise UserError(
            f"{path}: no safetensors file{f', but {kind}' if kind else ''}. "
            "Pickles (.pt, .pth, .bin) are not loaded; "
            f"`csdn fetch-clip` writes the weights of {name!r} as safetensors"
        ) from None
