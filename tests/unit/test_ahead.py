"""Reading ahead keeps the order, stays near, and tells of a fault where it belongs."""

from __future__ import annotations

import threading

import pytest

from csdn.data.loader import prefetch


def bytes_of(number: int) -> bytes:
    if number == 7:
        raise OSError("cannot be read")
    return bytes([number])


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_everything_comes_in_order_and_a_fault_at_its_place(threads):
    for number, taken in prefetch(bytes_of, range(20), threads):
        if number == 7:
            with pytest.raises(OSError, match="cannot be read"):
                taken()
        else:
            assert taken() == bytes([number])
    assert number == 19


def test_what_is_not_taken_is_not_read_far_ahead():
    asked = []
    reading = prefetch(bytes_of, (asked.append(n) or n for n in range(100)), 3)
    next(reading)
    assert len(asked) == 6
    reading.close()
    assert len(asked) == 6


def test_several_are_read_at_once():
    together = threading.Barrier(4, timeout=10)
    list(prefetch(lambda _: together.wait() and b"", range(8), 4))
