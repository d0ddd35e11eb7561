"""What the machine lacks is understood from every library's own words."""

from __future__ import annotations

import pytest

from csdn.runtime.errors import explain_os_error


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB",
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 4294967296 bytes.",
    ],
)
def test_what_torch_says_of_memory_is_understood(message):
    assert explain_os_error(RuntimeError(message), lower="embedding.identities_per_batch") == (
        "memory ran out: lower embedding.identities_per_batch in params.yaml, or free some"
    )


def test_a_full_disk_is_understood_from_other_languages_too():
    error = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    assert explain_os_error(error).startswith("the disk is full")


def test_a_defect_is_nobody_else_s_fault():
    assert explain_os_error(ZeroDivisionError("division by zero")) is None
    assert explain_os_error(FileNotFoundError(2, "No such file or directory", "x")) is None
