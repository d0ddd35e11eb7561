"""Text maps: the agreement of each cell of an image's feature map with its person's text.

The attention pool computes an image's vector from its cells: W_c (sum_l a_l (W_v x_l + b_v)) + b_c, with
separate attention weights a for each head. The same two linear maps without the sum, W_c (W_v x_l + b_v) +
b_c, project one cell into the space where images and texts are compared (as MaskCLIP does, arXiv 2112.01071).
Training ties the weighted sum to a text, not single cells: a map shows which cells agree with a text, and
does not explain why an image was found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from csdn.model import CSDN
    from csdn.model.pooling import AttentionPool

PEOPLE = 6


class TextMaps(NamedTuple):
    """Maps [n, h, w] over the cells of n images."""

    own: Tensor  # cosine of the cell and the text of the image's person
    others: Tensor  # mean cosine of the cell and all other people's texts; 0 without others
    attention: Tensor  # of the pool, mean over its heads; the mean token has the remainder to 1


@torch.inference_mode()
def text_maps(model: CSDN, images: Tensor, modality: str, texts: Tensor, labels: Tensor) -> TextMaps:
    """Maps of images [n, 3, H, W] of one modality, for texts [identities, d] and the images' labels [n]."""
    features = model.feature_map({modality: images})
    cells = F.normalize(cells_as_texts(model.attention_pool, features), dim=2)
    agreement = cells @ F.normalize(texts, dim=1).T
    own = agreement[torch.arange(len(labels)), :, labels]
    others = (agreement.sum(dim=2) - own) / max(1, len(texts) - 1)
    attention = pool_attention(model.attention_pool, features)[:, 1:]
    grid = features.shape[2:]
    return TextMaps(*(one.unflatten(1, grid) for one in (own, others, attention)))


def cells_as_texts(pool: AttentionPool, features: Tensor) -> Tensor:
    """Each cell of a map [n, c, h, w] through the pool's value and output projections: [n, h*w, d]."""
    return pool.c_proj(pool.v_proj(_tokens(features, pool)[:, 1:]))


def pool_attention(pool: AttentionPool, features: Tensor) -> Tensor:
    """Attention of the pool's query to the mean token and each cell, mean over heads: [n, 1 + h*w], sum 1."""
    tokens = _tokens(features, pool)
    query = pool.q_proj(tokens[:, 0]).unflatten(1, (pool.heads, -1))
    keys = pool.k_proj(tokens).unflatten(2, (pool.heads, -1))
    scores = torch.einsum("nhk,nlhk->nhl", query, keys) * query.shape[2] ** -0.5
    return scores.softmax(dim=2).mean(dim=1)


def examples(labels: np.ndarray, modality: np.ndarray, people: int = PEOPLE) -> np.ndarray:
    """Rows of the first visible and the first infrared image of evenly spaced people.

    labels, modality: of the images [n], labels 0..C-1, modality 0 visible and 1 infrared.

    >>> examples(np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 0, 1]), people=2).tolist()
    [0, 1, 4, 5]
    """
    known = np.unique(labels)
    chosen = known[np.linspace(0, len(known) - 1, min(people, len(known))).round().astype(int)]
    found = [np.flatnonzero((labels == label) & (modality == code)) for label in chosen for code in (0, 1)]
    return np.array([rows[0] for rows in found if len(rows)], dtype=np.int64)


def _tokens(features: Tensor, pool: AttentionPool) -> Tensor:
    """The mean token, then the cells, with their positions: [n, 1 + h*w, c]."""
    cells = features.flatten(2).transpose(1, 2)
    return torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1) + pool.positions
