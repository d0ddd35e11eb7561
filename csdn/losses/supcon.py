"""Supervised contrast between two sets of features: stage 1 ties images and texts of a person."""

from __future__ import annotations

import torch
from torch import Tensor

from csdn.losses.checks import check_rows, check_same_width


def supcon(a: Tensor, b: Tensor, labels_a: Tensor, labels_b: Tensor) -> Tensor:
    """- mean_i mean_{j: labels_b[j] = labels_a[i]} log softmax_j(a_i . b_j): raw dot products, temperature 1.

    a: floats [n, d]; b: [m, d]; labels_a: integers [n]; labels_b: [m]. Returns a scalar of their type. A row
    of `a` without a partner in `b` adds nothing; no rows at all give zero. Raises ValueError for shapes that
    do not fit, and for anything but tensors.

    >>> rows = torch.zeros(1, 2), torch.zeros(2, 2)
    >>> round(supcon(*rows, torch.tensor([0]), torch.tensor([0, 1])).item(), 4)  # log 2: two equal candidates
    0.6931
    """
    check_rows("a", a, "labels_a", labels_a)
    check_rows("b", b, "labels_b", labels_b)
    check_same_width("a", a, "b", b)
    same = labels_a[:, None] == labels_b
    log_likelihood = torch.log_softmax(a @ b.T, dim=1).masked_fill(~same, 0)
    partners = same.sum(1).clamp(min=1)
    return -(log_likelihood.sum(1) / partners).sum() / max(len(a), 1)
