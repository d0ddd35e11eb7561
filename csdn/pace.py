"""How often the state of a stage is saved (csdn.state)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

# How many times what a save takes passes until the next one.
REST = 200.0


class Pace:
    """When to save: after a save follow `rest` times what it took, and at least `least` seconds, without one.

    So saving costs half a percent of the time, whatever the size of the model, and a kill loses as much work
    as takes the time of REST saves; at most `most` seconds of it, whatever that costs.
    """

    def __init__(self, rest: float = REST, least: float = 1.0, most: float = math.inf) -> None:
        self.rest, self.least, self.most = rest, least, most
        self._next = 0.0

    def due(self) -> bool:
        return time.monotonic() >= self._next

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around each save, which is timed."""
        began = time.monotonic()
        yield
        ended = time.monotonic()
        self._next = ended + min(self.most, max(self.least, self.rest * (ended - began)))
