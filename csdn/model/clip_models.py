"""What open_clip says of a ResNet CLIP: its configuration, its tensors, its words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from csdn.errors import UserError
from csdn.model.clip_facts import ClipFacts, Shapes
from csdn.model.fit import misfits, refuse, shapes
from csdn.model.prompts import CONTEXT, LENGTH, TEMPLATE

BUILT_IN = "csdn-small"


def facts_of(name: str) -> ClipFacts:
    """Raises UserError for a CLIP that open_clip does not know, or that is no ResNet."""
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
    """Raises UserError naming `source` where tensors of these names and shapes are not the CLIP `name`."""
    given = {key: shape for key, shape in found.items() if key != "logit_scale"}  # it comes as [] or [1]
    refuse(source, misfits(_needed_shapes(model_config(name)), given), f"not the weights of CLIP {name!r}:")


def model_config(name: str) -> dict[str, Any]:
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


def _needed_shapes(config: Mapping[str, Any]) -> dict[str, list[int]]:
    import open_clip

    with torch.device("meta"):
        model = open_clip.CLIP(**config)
    return {key: shape for key, shape in shapes(model.state_dict()).items() if key != "logit_scale"}


def _template_ids(name: str) -> tuple[int, ...]:
    """Token ids of the template; its words must stand where csdn.model.prompts says."""
    import open_clip

    ids = open_clip.get_tokenizer(name)([TEMPLATE])[0]
    if ids.argmax() != LENGTH - 1 or len(ids[CONTEXT].unique()) != 1:
        raise UserError(
            f"CLIP {name!r}: its tokenizer does not give {TEMPLATE!r} one token a word: {ids.tolist()}"
        )
    return tuple(ids[:LENGTH].tolist())
