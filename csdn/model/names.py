"""Our names of tensors in terms of CLIP's, for the modules that are CLIP's (clip.py, published.py)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

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
    """Of a tensor of our text encoder ("layers.0.out.weight") CLIP's name; layer norms have the same."""
    for pattern, replacement in _TEXT:
        name, hits = re.subn(f"^{pattern}", replacement, name)
        if hits:
            break
    return name


def count_numbered(names: Iterable[str], pattern: str) -> int:
    """How many different numbers stand where `pattern` has its group."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def text_sizes(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, int]:
    """Width, layers and output dimension of a CLIP text transformer, as fields of ModelConfig."""
    width, embed_dim = tensors[f"{prefix}text_projection"].shape
    layers = count_numbered(tensors, rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\.")
    return {"text_width": width, "text_layers": layers, "embed_dim": embed_dim}
