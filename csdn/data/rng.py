"""Counted randomness: every draw is a function of a seed and named counters, never of who draws or when.

Draws of a batch are made for the whole global batch from (seed, stream, epoch, step); a worker takes its
positions of them. So a result depends neither on the number of workers nor on where a run was resumed.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a draw is for. The numbers are part of every result: never change or reuse one."""

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
    """The generator of one place in a run: `generator(seed, Stream.DROPOUT, epoch, step)`.

    Philox is specified bit for bit, on every machine. The counters are a spawn key, not further entropy:
    as entropy (seed, 1) and (seed, 1, 0) would be the same generator.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=counters)))
