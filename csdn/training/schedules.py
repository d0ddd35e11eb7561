"""Learning rates as pure functions of the epoch, which may be fractional."""

from __future__ import annotations

import math
from collections.abc import Sequence


def warmup_cosine(
    epoch: float,
    *,
    epochs: float,
    learning_rate: float,
    warmup_epochs: float,
    warmup_learning_rate: float,
    final_learning_rate: float,
) -> float:
    """Learning rate of stage 1 at `epoch` (0 <= epoch < epochs).

    Linear from `warmup_learning_rate` during the warm-up; after it a cosine from `learning_rate` to
    `final_learning_rate` that counts from epoch 0, so it is already below `learning_rate` when it begins.

    >>> warmup_cosine(0, epochs=60, learning_rate=3e-4, warmup_epochs=5, warmup_learning_rate=1e-5,
    ...               final_learning_rate=1e-6)
    1e-05
    """
    if epoch < warmup_epochs:
        return warmup_learning_rate + epoch * (learning_rate - warmup_learning_rate) / warmup_epochs
    fall = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    return final_learning_rate + (learning_rate - final_learning_rate) * fall


def lr_multiplier(
    epoch: float,
    *,
    kind: str,
    epochs: float,
    warmup_epochs: float,
    warmup_factor: float,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
) -> float:
    """The multiplier of every learning rate of stage 2 at `epoch`.

    Linear warm-up from `warmup_factor` to 1, then `kind`: "steps" multiplies by `gamma` at each milestone
    (published: warm-up 10 epochs from 0.01, milestones 40 and 70); "cosine" falls to 0 at `epochs`.

    >>> lr_multiplier(40, kind="steps", epochs=120, warmup_epochs=10, warmup_factor=0.01, milestones=(40, 70))
    0.1
    """
    if epoch < warmup_epochs:
        fraction = epoch / warmup_epochs
        return warmup_factor * (1 - fraction) + fraction
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)))
    return gamma ** sum(epoch >= milestone for milestone in milestones)
