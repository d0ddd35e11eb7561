"""The method computed as it is written down, on our modules' weights: what our short forms must equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csdn.evaluation.metrics import RANKS
from csdn.model.pooling import AttentionPool
from csdn.model.text import SUFFIX, TextEncoder, TextLayer


def text_features(encoder: TextEncoder, context: Tensor, length: int = 77) -> Tensor:
    """All `length` tokens through every layer, zeros behind end-of-text; [n, 4, w] -> [n, d]."""
    before, behind = (part.expand(len(context), -1, -1) for part in (encoder.prefix, encoder.suffix))
    tokens = torch.cat([before, context, behind], dim=1) + encoder.positions
    tokens = F.pad(tokens, (0, 0, 0, length - tokens.shape[1]))
    for layer in encoder.layers:
        tokens = text_layer(layer, tokens)
    return encoder.ln_final(tokens)[:, SUFFIX.stop - 1] @ encoder.projection


def text_layer(layer: TextLayer, tokens: Tensor) -> Tensor:
    """A pre-norm transformer layer with causal attention, [n, t, w] -> [n, t, w]."""
    query, key, value = (
        part.unflatten(2, (layer.heads, -1)).transpose(1, 2)
        for part in layer.qkv(layer.ln_1(tokens)).chunk(3, dim=2)
    )
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    future = torch.ones(scores.shape[2:], dtype=torch.bool, device=tokens.device).triu(1)
    mixed = scores.masked_fill(future, float("-inf")).softmax(dim=3) @ value
    tokens = tokens + layer.out(mixed.transpose(1, 2).flatten(2))
    return tokens + layer.contract(layer.activation(layer.expand(layer.ln_2(tokens))))


def attention_pool(pool: AttentionPool, features: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """All tokens ask and are projected; the mean token's answer. [n, c, h, w] -> [n, d]."""
    cells = features.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([cells.mean(0, keepdim=True), cells]) + pool.positions[:, None]
    key_bias = torch.zeros_like(pool.q_proj.bias) if key_bias is None else key_bias
    answer, _ = F.multi_head_attention_forward(
        tokens,
        tokens,
        tokens,
        tokens.shape[2],
        pool.heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, key_bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        need_weights=False,
    )
    return answer[0]


def query_metrics(
    distances: Sequence[float],
    person: int,
    camera: int,
    gallery_ids: Sequence[int],
    gallery_cameras: Sequence[int],
    rule: str,
) -> tuple[int, float, float] | None:
    """One query, as the protocols are written down: (first rank, AP, INP), or None."""
    ranking = sorted(range(len(distances)), key=lambda place: (distances[place], place))
    seen = []
    for place in ranking:
        same_camera = gallery_cameras[place] == camera
        if rule == "sysu" and camera == 3 and gallery_cameras[place] == 2:
            continue
        if rule in ("llcm", "cameras") and gallery_ids[place] == person and same_camera:
            continue
        seen.append(gallery_ids[place])
    if person not in seen:
        return None
    counted = list(dict.fromkeys(seen)) if rule in ("sysu", "llcm") else seen
    places = [place for place, found in enumerate(seen, start=1) if found == person]
    precisions = [hits / place for hits, place in enumerate(places, start=1)]
    return counted.index(person) + 1, sum(precisions) / len(places), len(places) / places[-1]


def rank_metrics(
    distances: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
) -> tuple[np.ndarray, float, float]:
    """(CMC [20], mAP, mINP) by rule "sysu": NumPy, a query at a time."""
    cmc, precisions, penalties = [], [], []
    for row, person, camera in zip(distances, query_ids, query_cameras, strict=True):
        order = np.argsort(row, kind="stable")
        order = order[~((camera == 3) & (gallery_cameras[order] == 2))]
        ranked = gallery_ids[order]
        right = ranked == person
        if not right.any():
            continue
        people = list(dict.fromkeys(ranked.tolist()))
        hits = np.array([one == person for one in people][:RANKS])
        cmc.append(np.pad(hits, (0, RANKS - len(hits))).cumsum())
        places = np.flatnonzero(right)
        precisions.append(np.mean(np.arange(1, len(places) + 1) / (places + 1)))
        penalties.append(len(places) / (places[-1] + 1))
    return np.mean(cmc, axis=0), float(np.mean(precisions)), float(np.mean(penalties))
