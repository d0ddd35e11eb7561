"""Tables [identities, d] that replace the texts in stage 2, for research/text.py.

HSE is a softmax over the table's rows, so it depends only on their differences. The random table and that of the
images are scaled to the spread of the texts, so that they differ from the texts in content and not in strength.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from csdn.data.rng import generator

DERANGEMENT, GAUSSIAN, ROTATION = 1001, 1002, 1003  # streams of draws, apart from those of the product


def derangement(count: int, seed: int) -> list[int]:
    """A permutation of 0..count-1, one cycle through all of it: nothing stays in its place.

    Raises ValueError for fewer than two.
    """
    if count < 2:
        raise ValueError(f"{count} rows cannot change places: there must be two or more")
    order = generator(seed, DERANGEMENT).permutation(count)
    places = [0] * count
    for here, there in zip(order, [*order[1:], order[0]], strict=True):
        places[here] = int(there)
    return places


def gaussian(like: Tensor, seed: int) -> Tensor:
    """Independent normal numbers in the shape and with the spread of `like`."""
    draws = generator(seed, GAUSSIAN).standard_normal(like.shape)
    return with_spread(torch.from_numpy(draws).to(like), spread(like))


def rotated(table: Tensor, seed: int) -> Tensor:
    """The rows of `table` turned together at random: they move, and stay as far from each other."""
    draws = generator(seed, ROTATION).standard_normal((table.shape[1],) * 2)
    turn, _ = torch.linalg.qr(torch.from_numpy(draws))
    return (table.double() @ turn).to(table)


def prototypes(embeddings: Tensor, labels: Tensor, like: Tensor) -> Tensor:
    """Mean image embedding of each person, with the spread of `like` [identities, d].

    embeddings: [images, d], raw; labels: [images].
    """
    sums = torch.zeros_like(like).index_add_(0, labels, embeddings)
    means = sums / torch.bincount(labels, minlength=len(like))[:, None]
    return with_spread(means, spread(like))


def spread(table: Tensor) -> float:
    """Root mean square distance of the rows from their mean."""
    return float((table - table.mean(0)).square().sum(1).mean().sqrt())


def with_spread(table: Tensor, wanted: float) -> Tensor:
    """The rows around zero, scaled to the spread `wanted`."""
    return (table - table.mean(0)) * (wanted / spread(table))


def paired(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Mean of `values` - `others`, seed by seed, and its standard error; two pairs or more."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    return statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
