"""What the published implementation calls our tensors, and which of its tensors have no effect."""

from __future__ import annotations

import re
from collections.abc import Iterable

from csdn.model.names import clip_text_name

_STEM = {"conv1": "0", "bn1": "1", "conv2": "2", "bn2": "3", "conv3": "4", "bn3": "5"}
_SIDE = {"visible": "1", "infrared": "2"}
_RULES = (  # ours -> theirs, the first that fits
    (r"layers\.layer(\d)\.", lambda m: f"image_encoder.{int(m[1]) - 1}."),
    (r"stems\.(\w+)\.(\w+)\.", lambda m: f"image_encoder{_SIDE[m[1]]}.{_STEM[m[2]]}."),
    (r"attention_pool\.positions", lambda m: "attnpool.positional_embedding"),
    (r"attention_pool\.", lambda m: "attnpool."),
    (r"gem\.", lambda m: "classifier.GEM."),
    (r"gem_neck\.norm\.", lambda m: "classifier.BN."),
    (r"gem_neck\.", lambda m: "classifier."),
    (r"pool_neck\.norm\.", lambda m: "classifier2.BN."),
    (r"pool_neck\.", lambda m: "classifier2."),
    (r"prompts\.tokens\.(\w+)", lambda m: f"prompt_learner{_SIDE[m[1]]}.cls_ctx"),
    (r"text_encoder\.prefix", lambda m: "prompt_learner1.token_prefix"),
    (r"text_encoder\.suffix", lambda m: "prompt_learner1.token_suffix"),
    (r"text_encoder\.(.*)", lambda m: f"text_encoder.{clip_text_name(m[1])}"),
    (r"integration\.value\.", lambda m: "attention_fusion.embedding_v.0."),
    (r"integration\.output\.", lambda m: "attention_fusion.embedding_common.0."),
)
_WITHOUT_EFFECT = {
    "attnpool.k_proj.bias": "adds the same to every score, which softmax does not see",
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
    """Those of the published `names` that no output depends on -> why."""
    return {
        name: reason for name in names for part, reason in _WITHOUT_EFFECT.items() if name.startswith(part)
    }
