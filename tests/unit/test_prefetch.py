"""Reading in advance keeps the order, is bounded, and raises an error at the item that caused it."""

from __future__ import annotations

import threading

import pytest

from csdn.data.storage import prefetch


def bytes_of(number: int) -> bytes:
    if number == 7:
        raise OSError("cannot be read")
    return bytes([number])


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_items_come_in_order_and_an_error_at_its_item(threads):
    for number, pending in prefetch(bytes_of, range(20), threads):
        if number == 7:
            with pytest.raises(OSError, match="cannot be read"):
                pending()
        else:
            assert pending() == bytes([number])
    assert number == 19


def test_at_most_twice_as_many_items_as_threads_are_read_in_advance():
    requested = []
    reading = prefetch(bytes_of, (requested.append(n) or n for n in range(100)), 3)
    next(reading)
    assert len(requested) == 6
    reading.close()
    assert len(requested) == 6


def test_several_items_are_read_at_once():
    together = threading.Barrier(4, timeout=10)
    list(prefetch(lambda _: together.wait() and b"", range(8), 4))
