"""MSEL: the distances of a person's images across the modalities should be those within a modality."""

from __future__ import annotations

from torch import Tensor

from csdn.losses.distance import euclidean


def msel(visible: Tensor, infrared: Tensor, labels: Tensor, instances: int) -> Tensor:
    """Half of [mean over visible + mean over infrared] of (cross - intra)^2.

    visible, infrared: [n, d], not normalised; labels: [n], the people of both; instances: K, the images of a
    person in each modality. intra: mean of the K - 1 largest distances to the same person in the same
    modality (all but the image itself); cross: mean of the K distances to the same person in the other one.
    Returns a scalar; no rows give zero.
    """
    same = labels[:, None] == labels
    cross = euclidean(visible, infrared).masked_fill(~same, 0)
    gap_visible = _mean_largest(cross, instances) - _intra(visible, same, instances)
    gap_infrared = _mean_largest(cross.T, instances) - _intra(infrared, same, instances)
    return (gap_visible.square() + gap_infrared.square()).sum() / (2 * max(len(labels), 1))


def _intra(features: Tensor, same: Tensor, instances: int) -> Tensor:
    return _mean_largest(euclidean(features, features).masked_fill(~same, 0), instances - 1)


def _mean_largest(distances: Tensor, count: int) -> Tensor:
    """Mean [n] of the `count` largest distances of each row [n, m]; zero where nothing is counted."""
    largest = distances.topk(min(count, distances.shape[1]), dim=1).values
    return largest.sum(1) / max(count, 1)
