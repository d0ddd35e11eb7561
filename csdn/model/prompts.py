"""Modality-specific prompts: "A photo of a X X X X person." the four X are vectors of each person's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

TEMPLATE = "A photo of a X X X X person."
# Token positions in the template: start-of-text and "a photo of a", the X, and "person . end-of-text".
PREFIX = slice(0, 5)
CONTEXT = slice(5, 9)
SUFFIX = slice(9, 12)
LENGTH = 12
DEVIATION = 0.02  # of the tokens before training


class PromptLearner(nn.Module):
    """Learnable tokens [identities, 4, text_width] for each modality, or one set for both where `shared`."""

    def __init__(self, identities: int, text_width: int, modalities: Sequence[str], shared: bool) -> None:
        super().__init__()
        self.set_of = {modality: "shared" if shared else modality for modality in modalities}
        shape = (identities, CONTEXT.stop - CONTEXT.start, text_width)
        self.tokens = nn.ParameterDict(
            {
                name: nn.Parameter(DEVIATION * torch.randn(shape))
                for name in dict.fromkeys(self.set_of.values())
            }
        )

    def forward(self, modality: str, people: Tensor | None = None) -> Tensor:
        """Tokens [n, 4, text_width] of `people` [n] (rows; everybody if None)."""
        tokens = self.tokens[self.set_of[modality]]
        return tokens if people is None else tokens[people]
