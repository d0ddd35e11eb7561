"""Memory shared with the feed's processes, used again and again.

Fresh shared pages cost far more than filling them (measured: 67 ms against 3 ms for a batch of 48 MB), so a
DataLoader's own way, new shared memory for each tensor, would cost more than decoding the batch.
"""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Sequence

import numpy as np


class Slots:
    """`count` float32 arrays of one shape that forked processes fill and the parent lends out.

    A lent array is free again when nothing refers to it any more. At most `lendable` are out at a time: more
    are lent as copies, so a consumer may keep every batch, at the price of its memory.
    """

    def __init__(self, count: int, lendable: int, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.lendable = lendable
        # Anonymous, so that neither a name nor the size of /dev/shm stands in the way.
        self._memory = [mmap.mmap(-1, 4 * math.prod(self.shape)) for _ in range(count)]
        self._lent: set[int] = set()
        self._free: list[int] = []
        self.reclaim()

    def reclaim(self) -> None:
        """Take back all that is not lent: what was to be filled for an epoch that was given up."""
        self._free = [slot for slot in range(len(self._memory)) if slot not in self._lent]

    def take(self) -> int:
        """The number of a free slot, to be filled."""
        return self._free.pop()

    def array(self, slot: int) -> np.ndarray:
        """The slot's array, in any process."""
        return np.frombuffer(self._memory[slot], np.float32).reshape(self.shape)

    def lend(self, slot: int) -> np.ndarray:
        """The slot's array, for the consumer."""
        if len(self._lent) == self.lendable:
            self._free.append(slot)
            return self.array(slot).copy()
        array = self.array(slot)
        self._lent.add(slot)
        # Every view keeps the array at the bottom alive, so its end is the end of them all.
        weakref.finalize(array.base, self._give_back, slot)
        return array

    def _give_back(self, slot: int) -> None:
        self._lent.remove(slot)
        self._free.append(slot)
