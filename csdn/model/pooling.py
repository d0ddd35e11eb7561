"""From a feature map to one vector: GeM (branch A) and CLIP's attention pool (branch B)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GeM(nn.Module):
    """Generalised mean (arXiv 1711.02512), [n, c, h, w] -> [n, c], with a learnable power p.

    p = 1 is the mean; large p approaches the maximum.
    """

    def __init__(self, p: float = 3.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))

    def forward(self, features: Tensor) -> Tensor:
        return features.clamp(min=1e-6).pow(self.p).mean((2, 3)).pow(1 / self.p)


class AttentionPool(nn.Module):
    """CLIP's attention pool, [n, c, h, w] -> [n, d], computed for its single query, the mean of the cells.

    The result is exact, but no cell is projected. With W_k, W_v the projections of a head to keys and values:
      score_l = q . (W_k x_l + b_k) = (W_k^T q) . x_l + a constant that has no effect on the softmax,
      sum_l a_l (W_v x_l + b_v) = W_v (sum_l a_l x_l) + b_v, because the attention weights a sum to one.
    So W_k is applied to the query and W_v to the weighted sum; b_k has no effect and is left out.
    """

    def __init__(self, channels: int, heads: int, embed_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.randn(1 + grid[0] * grid[1], channels) / channels**0.5)
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels, bias=False)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, embed_dim)

    def forward(self, features: Tensor) -> Tensor:
        cells = features.flatten(2).transpose(1, 2)
        tokens = torch.cat([cells.mean(1, keepdim=True), cells], dim=1) + self.positions
        per_head = (self.heads, -1, tokens.shape[2])
        query = self.q_proj(tokens[:, 0]).unflatten(1, (self.heads, -1))
        query = torch.einsum("nhk,hkc->nhc", query, self.k_proj.weight.view(per_head))
        scores = query @ tokens.transpose(1, 2) * (tokens.shape[2] // self.heads) ** -0.5
        mixed = scores.softmax(dim=2) @ tokens
        values = torch.einsum("nhc,hkc->nhk", mixed, self.v_proj.weight.view(per_head)).flatten(1)
        return self.c_proj(values + self.v_proj.bias)


def resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings of a square map, [1 + s*s, c], resized to a map of h x w cells: [1 + h*w, c].

    Bilinear, align_corners False; the first row, that of the mean token, stays as it is.
    """
    side = round((len(positions) - 1) ** 0.5)
    cells = positions[1:].T.reshape(1, -1, side, side)
    resized = F.interpolate(cells, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([positions[:1], resized[0].flatten(1).T])
