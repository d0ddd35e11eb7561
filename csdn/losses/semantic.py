"""HSE, high-level semantic embedding: an image feature names its person among all the fused texts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from csdn.losses.checks import check_rows, check_same_width, check_table


def semantic(features: Tensor, text_table: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of features . text_table^T, raw dot products.

    features: floats [n, d]; text_table: [identities, d]; labels: integers [n], rows of the table. Returns a
    scalar; no rows give zero. Raises ValueError for shapes that do not fit, for anything but tensors, and (on
    the CPU, where it costs nothing) for a label that is no row of the table.
    """
    check_rows("features", features, "labels", labels)
    check_same_width("features", features, "text_table", text_table)
    check_table(labels, text_table)
    return F.cross_entropy(features @ text_table.T, labels, reduction="sum") / max(len(labels), 1)
