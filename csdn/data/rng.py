"""Counted randomness: every random draw is a function of (seed, purpose, epoch, step), not of a shared
stream.

The draws of a batch are made for the whole global batch, and a worker takes its positions of them. So a
result depends neither on the number of workers nor on the step at which a run was resumed.

The sampler (csdn.data.sampler) and the augmentation (csdn.data.batch) draw from here, and so do dropout and
new rows of the prompt learner.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a random draw is for. The numbers enter every result: never change or reuse one."""

    IDENTITIES = 1
    VISIBLE_IMAGES = 2
    INFRARED_IMAGES = 3
    PAIRS = 4
    POOL = 5
    VISIBLE_VIEW1 = 6
    VISIBLE_VIEW2 = 7
    INFRARED_VIEW = 8
    DROPOUT = 9
    NEW_PERSON = 10


def generator(seed: int, *counters: int) -> np.random.Generator:
    """The generator of one purpose and position in a run: `generator(seed, Stream.DROPOUT, epoch, step)`.

    Philox is specified bit for bit, so every machine draws the same numbers. The counters are passed as a
    spawn key, because as entropy (seed, 1) and (seed, 1, 0) would give the same generator.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=counters)))
