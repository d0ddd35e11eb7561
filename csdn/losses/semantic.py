"""HSE, high-level semantic embedding: an image feature names its person among all the fused texts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def semantic(features: Tensor, text_table: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of features . text_table^T, raw dot products.

    features: [n, d]; text_table: [identities, d]; labels: [n], rows of the table. Returns a scalar; no rows
    give zero.
    """
    return F.cross_entropy(features @ text_table.T, labels, reduction="sum") / max(len(labels), 1)
