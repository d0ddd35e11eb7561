"""CLIP's weights: the file that a network starts from, and where that file comes from.

1. `load_clip` reads a safetensors file of an open_clip ResNet and checks it by name and shape; `Clip` gives
   its tensors under the names of our network.
2. `ClipFacts`: what the shapes of the weights do not tell (heads, activation, token ids of the template).
   Files that this package writes have them in their header; for other files open_clip tells them, whose
   import takes four seconds.
3. `fetch_clip` and `convert` write such files, from a download or from a state dict.
4. The small CLIP that is part of the package, registered with open_clip.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from csdn.model.network import CSDN, ModelConfig
from csdn.model.pooling import resize_positions
from csdn.model.text import CONTEXT, LENGTH, PREFIX, SUFFIX, TEMPLATE
from csdn.model.weights import (
    check_weights,
    misfits,
    mistaken_for_weights,
    read_safetensors,
    read_state_dict,
    refuse,
    shapes,
    tensors_in,
)
from csdn.runtime.documents import parse_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_write, file_sha256

BUILT_IN = "csdn-small"
ASSETS = Path(__file__).parent / "assets"
WEIGHTS = ASSETS / "clip-small.safetensors"
VOCABULARY = ASSETS / "bpe-small.txt.gz"

Shapes = Mapping[str, Sequence[int]]


# 1. Loading.


@dataclass(frozen=True)
class Clip:
    """Weights of a ResNet CLIP, float32 under CLIP's names, and what their shapes do not tell."""

    facts: ClipFacts
    sha256: str  # of the file
    tensors: Mapping[str, Tensor]

    def config(self, **chosen: Any) -> ModelConfig:
        """The configuration of a network with these weights; chosen: the fields that CLIP leaves open."""
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

    def weights_for(self, model: CSDN) -> dict[str, Tensor]:
        """This CLIP's tensors under the names of `model`, cut to its image size and template."""
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


def load_clip(name: str, weights: str | Path) -> Clip:
    """The CLIP `name` ("csdn-small" or a ResNet of open_clip, such as "RN50") from a safetensors file.

    Raises UserError where the file is missing, not safetensors, or of another architecture.
    """
    path = Path(weights)
    metadata, found = _read_header(path, name)
    facts = facts_in(metadata, name, found)
    if facts is None:
        facts = facts_of(name)
        check_shapes(str(path), name, found)
    tensors = read_safetensors(path)
    check_weights(str(path), tensors)
    return Clip(facts, file_sha256(path), {key: tensor.float() for key, tensor in tensors.items()})


def _read_header(path: Path, name: str) -> tuple[dict[str, str] | None, dict[str, list[int]]]:
    """(metadata of the file, shapes of its tensors by name)."""
    if not path.is_file():
        advice = "`csdn fetch-clip` downloads it" if name != BUILT_IN else "it is part of the package"
        raise UserError(f"{path}: no such file of CLIP weights for {name!r}; {advice}")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata(), {key: file.get_slice(key).get_shape() for key in sorted(file.keys())}
    except SafetensorError:
        kind = mistaken_for_weights(path)
        raise UserError(
            f"{path}: not a safetensors file{f', but {kind}' if kind else ''}. "
            "Pickles (.pt, .pth, .bin) are not loaded; "
            f"`csdn fetch-clip` writes the weights of {name!r} as safetensors"
        ) from None


# Our names of tensors and CLIP's.


def _clip_name(name: str) -> str:
    """CLIP's name of one of our tensors; for one that CLIP lacks, a name that CLIP does not use."""
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


_TEXT = (
    (r"layers\.(\d+)\.qkv\.", r"transformer.resblocks.\1.attn.in_proj_"),
    (r"layers\.(\d+)\.out\.", r"transformer.resblocks.\1.attn.out_proj."),
    (r"layers\.(\d+)\.expand\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"layers\.(\d+)\.contract\.", r"transformer.resblocks.\1.mlp.c_proj."),
    (r"layers\.(\d+)\.ln_", r"transformer.resblocks.\1.ln_"),
    (r"projection$", "text_projection"),
    (r"positions$", "positional_embedding"),
)


def clip_text_name(name: str) -> str:
    """CLIP's name of a tensor of our text encoder ("layers.0.out.weight"); layer norms keep theirs."""
    for pattern, replacement in _TEXT:
        name, hits = re.subn(f"^{pattern}", replacement, name)
        if hits:
            break
    return name


def count_numbered(names: Iterable[str], pattern: str) -> int:
    """The number of different values of the pattern's group among the names."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})


class TextSizes(TypedDict):
    """Width, layers and output dimension of a CLIP text transformer, as fields of ModelConfig."""

    text_width: int
    text_layers: int
    embed_dim: int


def text_sizes(tensors: Mapping[str, Tensor], prefix: str = "") -> TextSizes:
    """The sizes, from the shapes of the tensors below `prefix`."""
    width, embed_dim = tensors[f"{prefix}text_projection"].shape
    layers = count_numbered(tensors, rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\.")
    return {"text_width": width, "text_layers": layers, "embed_dim": embed_dim}


# 2. What shapes do not tell: from the header of our files, or from open_clip.


_ENTRY = "csdn.clip"  # of the header of a safetensors file


@dataclass(frozen=True)
class ClipFacts:
    """Facts of the ResNet CLIP `name`; template: token ids of the prompt template, without padding."""

    name: str
    template: tuple[int, ...]
    pool_heads: int
    text_heads: int
    text_activation: str


def header(facts: ClipFacts, found: Shapes) -> dict[str, str]:
    """The header of a safetensors file with tensors of these shapes, which open_clip has confirmed.

    One entry only: safetensors writes several entries in an order that differs from call to call.
    """
    return {_ENTRY: json.dumps({**asdict(facts), "shapes": _digest(found)}, sort_keys=True)}


def facts_in(header: Mapping[str, str] | None, name: str, found: Shapes) -> ClipFacts | None:
    """The facts in a header, if it is of the CLIP `name` and the file still has the shapes that it states."""
    try:
        facts = parse_json((header or {})[_ENTRY], "the header")
        if facts.pop("shapes") != _digest(found) or facts["name"] != name:
            return None
        return ClipFacts(**facts | {"template": tuple(facts["template"])})
    except (UserError, KeyError, TypeError, AttributeError):  # not our header, or of another version
        return None


def _digest(found: Shapes) -> str:
    listing = json.dumps(sorted((name, list(shape)) for name, shape in found.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def facts_of(name: str) -> ClipFacts:
    """The facts that open_clip knows; raises UserError for an unknown CLIP, or not a ResNet."""
    config = model_config(name)
    vision = config["vision_cfg"]
    return ClipFacts(
        name=name,
        template=_template_ids(name),
        pool_heads=vision["width"] * 32 // vision.get("head_width", 64),
        text_heads=config["text_cfg"]["heads"],
        text_activation="quick_gelu" if _quick_gelu(name, config) else "gelu",
    )


def check_shapes(source: str, name: str, found: Shapes) -> None:
    """Raise UserError, naming `source`, where the names and shapes are not those of the CLIP `name`."""
    given = {key: shape for key, shape in found.items() if key != "logit_scale"}  # it is [] or [1]
    refuse(source, misfits(_needed_shapes(model_config(name)), given), f"not the weights of CLIP {name!r}:")


def model_config(name: str) -> dict[str, Any]:
    """open_clip's configuration of a ResNet CLIP."""
    import open_clip

    if name == BUILT_IN:
        register()
    config = open_clip.get_model_config(name)
    if config is None or not isinstance(config["vision_cfg"].get("layers"), list):
        known = [BUILT_IN] + [other for other in open_clip.list_models() if other.startswith("RN")]
        reason = "not known to open_clip" if config is None else "not a ResNet; only ResNet CLIPs have stems"
        raise UserError(f"CLIP {name!r}: {reason}. Choose one of: {', '.join(dict.fromkeys(known))}")
    return config


def _quick_gelu(name: str, config: Mapping[str, Any]) -> bool:
    """Trained with QuickGELU? open_clip's configuration "RN50" does not tell, but all its weights were."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    of_tags = [open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False) for tag in tags]
    return config.get("quick_gelu", False) or (bool(of_tags) and all(of_tags))


def _needed_shapes(config: Mapping[str, Any]) -> dict[str, list[int]]:
    import open_clip

    with torch.device("meta"):
        model = open_clip.CLIP(**config)
    return {key: shape for key, shape in shapes(model.state_dict()).items() if key != "logit_scale"}


def _template_ids(name: str) -> tuple[int, ...]:
    """Token ids of the template; its words must have the positions of csdn.model.text."""
    import open_clip

    ids = open_clip.get_tokenizer(name)([TEMPLATE])[0]
    if ids.argmax() != LENGTH - 1 or len(ids[CONTEXT].unique()) != 1:
        raise UserError(
            f"CLIP {name!r}: its tokenizer does not give {TEMPLATE!r} one token a word: {ids.tolist()}"
        )
    return tuple(ids[:LENGTH].tolist())


# 3. Writing such files.


# Sizes that OpenAI's state dicts hold as tensors among the weights.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


def fetch_clip(name: str, tag: str, out: str | Path, say: Callable[[str], None] = print) -> None:
    """Download the weights that open_clip knows as `tag` (such as "openai") and write them as safetensors.

    open_clip downloads by huggingface_hub: it shows progress, continues after a lost connection, and keeps
    the file in its cache (HF_HOME). say: called with what is downloaded, before the download.
    """
    import open_clip

    values = sum(math.prod(shape) for shape in _needed_shapes(model_config(name)).values())
    source = open_clip.get_pretrained_cfg(name, tag)
    if not source:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise UserError(f"CLIP {name!r} has no weights tagged {tag!r}; open_clip knows: {tags}")
    where = f"huggingface.co/{source['hf_hub'].strip('/')}" if source.get("hf_hub") else source.get("url")
    millions, gigabytes = values / 1e6, values * 4 / 1e9
    say(f"{name}, {tag}: {millions:.0f} million numbers from {where}, at most {gigabytes:.2f} GB")
    try:
        downloaded = open_clip.download_pretrained(source)
    except Exception as error:  # of the network, the hub or the disk
        file = (source.get("hf_hub") or where).rpartition("/")[2] or open_clip.pretrained.HF_SAFE_WEIGHTS_NAME
        raise UserError(
            f"CLIP {name!r}, {tag!r}: the download failed: {error}. Without a network: fetch {file} from "
            f"{where} on another machine, then csdn fetch-clip --from {file}"
        ) from error
    _check_hash(Path(downloaded))
    convert(downloaded, name, out)


def _check_hash(downloaded: Path) -> None:
    """Compare a file of huggingface_hub's cache with its SHA-256, by which the cache names it."""
    file = downloaded.resolve()
    if re.fullmatch("[0-9a-f]{64}", file.name) and file_sha256(file) != file.name:
        file.unlink()
        raise UserError(f"{downloaded}: was damaged, and is removed; run the same command again")


def convert(source: str | Path, name: str, out: str | Path) -> None:
    """Write a state dict of the CLIP `name` (.safetensors, or .pt/.bin of tensors only) as safetensors.

    Raises UserError, and leaves `out` as it is, where the file holds anything else.
    """
    values = tensors_in(read_state_dict(source), str(source))
    plain = {
        key: value.detach()
        for key, value in values.items()
        if isinstance(value, Tensor) and key not in NOT_WEIGHTS
    }
    check_shapes(str(source), name, shapes(plain))
    check_weights(str(source), plain)
    plain = {key: value.contiguous() for key, value in plain.items()}
    with atomic_write(Path(out)) as temporary:
        temporary.write_bytes(serialize(plain, metadata=header(facts_of(name), shapes(plain))))


# 4. The small CLIP of the package, as open_clip knows models:
#     register()
#     open_clip.create_model("csdn-small", pretrained=str(WEIGHTS)); open_clip.get_tokenizer("csdn-small")


@cache
def register() -> None:
    """Register "csdn-small" with open_clip; further calls do nothing."""
    import open_clip

    config = json.loads((ASSETS / f"{BUILT_IN}.json").read_text(encoding="utf-8"))
    config["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": str(VOCABULARY)}  # of this installation
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{BUILT_IN}.json")
        path.write_text(json.dumps(config), encoding="utf-8")
        open_clip.add_model_config(path)  # reads the file at once
