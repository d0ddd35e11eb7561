"""Euclidean distances between two sets of features, with a gradient that exists everywhere."""

from __future__ import annotations

import torch
from torch import Tensor


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Distances [n, m] between the rows of a [n, d] and b [m, d]: sqrt(max(d^2, 1e-12)), at least float32.

    Taken from the differences: by d^2 = |a|^2 + |b|^2 - 2 a.b equal rows would come out some 0.03 apart in
    float32. The bound keeps the gradient finite where rows are equal (it is zero there).
    """
    precision = torch.promote_types(a.dtype, torch.float32)
    a, b = a.to(precision), b.to(precision)
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=1e-6)
