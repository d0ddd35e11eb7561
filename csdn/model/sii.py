"""SII, semantic information integration: fuses the visible and the infrared text of an identity.

The other classes are the variants of the ablation. All are called as `integration(visible, infrared, keep)`,
texts [n, d] -> [n, d]. `keep` is the dropout mask [n, d] (true: kept); the caller draws it as a function of
seed and step, so that a resumed run draws the same. None means no dropout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DROPOUT = 0.1


class SII(nn.Module):
    """Attention of the visible text (query) over the infrared text (key and value), plus the visible text.

    With a single key the softmax is 1, so query and key have no effect, and what is left is exactly
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


class ConcatIntegration(nn.Module):
    """A linear map of the two concatenated texts."""

    dropout = 0.0

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.output = nn.Linear(2 * embed_dim, embed_dim)

    def forward(self, visible: Tensor, infrared: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.output(torch.cat([visible, infrared], dim=1))


class FixedIntegration(nn.Module):
    """A fixed weighted sum of the two texts: their sum, or one of them alone."""

    dropout = 0.0

    def __init__(self, visible: float, infrared: float) -> None:
        super().__init__()
        self.weights = visible, infrared

    def forward(self, visible: Tensor, infrared: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.weights[0] * visible + self.weights[1] * infrared


def build_integration(name: str, embed_dim: int) -> SII | ConcatIntegration | FixedIntegration:
    """The variant called `name` (csdn.model.network.INTEGRATIONS)."""
    match name:
        case "sii":
            return SII(embed_dim)
        case "concat":
            return ConcatIntegration(embed_dim)
        case "sum":
            return FixedIntegration(1, 1)
        case "infrared":
            return FixedIntegration(0, 1)
        case "visible" | "shared":  # with shared prompts the two texts are the same
            return FixedIntegration(1, 0)
    raise ValueError(f"no integration is called {name!r}")
