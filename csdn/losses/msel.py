"""MSEL: the distances of a person's images across the modalities should be those within a modality."""

from __future__ import annotations

from torch import Tensor

from csdn.losses.checks import check_rows, check_same_width
from csdn.losses.distance import euclidean


def msel(visible: Tensor, infrared: Tensor, labels: Tensor, instances: int) -> Tensor:
    """Half of [mean over visible + mean over infrared] of (cross - intra)^2.

    visible, infrared: floats [n, d], not normalised; labels: integers [n], the people of both; instances: K,
    the images of a person in each modality (taken as given: labels are not counted). intra: mean of the K - 1
    largest distances to the same person in the same modality (all but the image itself); cross: mean of the K
    distances to the same person in the other one. Returns a scalar, at least float32; no rows give zero.
    Raises ValueError for shapes that do not fit, for anything but tensors, and for instances below 1.
    """
    check_rows("visible", visible, "labels", labels)
    check_rows("infrared", infrared, "labels", labels)
    check_same_width("visible", visible, "infrared", infrared)
    if instances < 1:
        raise ValueError(f"instances = {instances}: a person has one image in each modality at least")
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
