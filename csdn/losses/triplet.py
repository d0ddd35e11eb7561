"""WRT, the weighted-regularised triplet loss (AGW): every pair counts, hard ones more; there is no margin."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from csdn.losses.checks import check_rows
from csdn.losses.distance import euclidean


def weighted_triplet(features: Tensor, labels: Tensor) -> Tensor:
    """Mean over i of softplus(P_i - N_i), the weighted distances of i to its own person and to the others.

    features: floats [n, d], not normalised; labels: integers [n]. Returns a scalar, at least float32. Raises
    ValueError for shapes that do not fit, and for anything but tensors. Far positives and near negatives
    weigh most (a softmax of +d and of -d over each set). A batch without negatives, or without rows, gives a
    finite value too; softplus does not overflow at large distances, where log(1 + exp(x)) does.
    """
    check_rows("features", features, "labels", labels)
    return triplet_of(features, labels, features, labels)


def triplet_of(anchors: Tensor, anchor_labels: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """The part of `weighted_triplet(features, labels)` that some of its rows have: their mean.

    anchors: [m, d] rows of features [n, d]; anchor_labels: [m]; labels: [n].
    """
    distances = euclidean(anchors, features)
    same = anchor_labels[:, None] == labels
    positive = (_weights(distances, same) * distances).sum(1)
    negative = (_weights(-distances, ~same) * distances).sum(1)
    return F.softplus(positive - negative).sum() / max(len(anchors), 1)


def _weights(scores: Tensor, mask: Tensor) -> Tensor:
    """exp(score - max) / (sum + 1e-6) over the mask, zero outside it; scores, mask: [m, n].

    The maximum is taken over the masked matrix, zeros included: with the 1e-6 it decides the value, so this
    is not quite a softmax where all the scores are far below zero.
    """
    if not len(scores):
        return scores
    masked = scores.masked_fill(~mask, 0)
    exponentials = (masked - masked.amax(1, keepdim=True)).exp().masked_fill(~mask, 0)
    return exponentials / (exponentials.sum(1, keepdim=True) + 1e-6)
