"""How much of its time a training waits for data: whether the feed needs more processes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Waiting:
    """Measures the time that is spent in getting the items of `timed`."""

    def __init__(self) -> None:
        self._waited = 0.0
        self._began = time.monotonic()

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, in turn."""
        iterator = iter(items)
        while True:
            began = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._waited += time.monotonic() - began
            yield item

    def share(self) -> float:
        """Waiting time over all time, from 0 to 1, since this was last asked."""
        now = time.monotonic()
        share = self._waited / max(now - self._began, 1e-9)
        self._waited, self._began = 0.0, now
        return min(share, 1.0)
