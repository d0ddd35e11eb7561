"""Reading ahead of use, for sources that answer slowly but many at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")
Taken = Callable[[], bytes]  # gives the bytes, or raises what reading them raised


def read_ahead(read: Callable[[T], bytes], wanted: Iterable[T], threads: int) -> Iterator[tuple[T, Taken]]:
    """(one, its bytes) for each of `wanted`, in order; 0 threads read when it is asked for.

    At most twice `threads` are read or waiting to be.
    """
    if not threads:
        yield from ((one, partial(read, one)) for one in wanted)
        return
    waiting: deque[tuple[T, Future[bytes]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for one in wanted:
            waiting.append((one, pool.submit(read, one)))
            if len(waiting) == 2 * threads:
                first, future = waiting.popleft()
                yield first, future.result
        yield from ((one, future.result) for one, future in waiting)
    finally:
        pool.shutdown(cancel_futures=True)
