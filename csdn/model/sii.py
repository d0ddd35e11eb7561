"""SII, semantic information integration: a person's visible and infrared text become one (and its ablations).

Every variant is called as `integration(visible, infrared, keep)`, texts [n, d] -> [n, d]. `keep` is dropout's
mask [n, d] (true: kept), drawn by the caller so that the draw is counted; None means no dropout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DROPOUT = 0.1


class Attention(nn.Module):
    """CSDN's: attention of the visible text over the infrared one, plus the visible text.

    There is one key, so its softmax is 1 whatever the query and key: what is left is exactly
    t_v + b_c + W_c . dropout(tanh(W_v t_i + b_v)).
    """

    dropout = DROPOUT

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.value = nn.Linear(embed_dim, embed_dim)
        self.output = nn.Linear(embed_dim, embed_dim)

    def forward(self, visible: Tensor, infrared: Tensor, keep: Tensor | None = None) -> Tensor:
        value = torch.tanh(self.value(infrared))
        if keep is not None:
            value = value * keep / (1 - self.dropout)
        return visible + self.output(value)


class Concat(nn.Module):
    """A linear map of the two texts side by side."""

    dropout = 0.0

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.output = nn.Linear(2 * embed_dim, embed_dim)

    def forward(self, visible: Tensor, infrared: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.output(torch.cat([visible, infrared], dim=1))


class Weighted(nn.Module):
    """Without weights to learn: the sum of the two texts, or one of them alone."""

    dropout = 0.0

    def __init__(self, visible: float, infrared: float) -> None:
        super().__init__()
        self.of_visible, self.of_infrared = visible, infrared

    def forward(self, visible: Tensor, infrared: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.of_visible * visible + self.of_infrared * infrared


def build_integration(name: str, embed_dim: int) -> Attention | Concat | Weighted:
    """The variant called `name` (csdn.model.network.INTEGRATIONS)."""
    match name:
        case "sii":
            return Attention(embed_dim)
        case "concat":
            return Concat(embed_dim)
        case "sum":
            return Weighted(1, 1)
        case "infrared":
            return Weighted(0, 1)
        case "visible" | "shared":  # where the prompt is shared, the two texts are the same
            return Weighted(1, 0)
    raise ValueError(f"no integration is called {name!r}")
