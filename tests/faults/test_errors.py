"""Faults of the machine are recognised in the messages of every library."""

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
def test_out_of_memory_is_recognised_in_torch_s_messages(message):
    assert explain_os_error(RuntimeError(message), reduce="embedding.identities_per_batch") == (
        "memory ran out: reduce embedding.identities_per_batch in params.yaml, or free some"
    )


def test_a_full_disk_is_recognised_in_messages_of_other_languages():
    error = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    assert explain_os_error(error).startswith("the disk is full")


def test_a_defect_of_the_program_is_no_fault_of_the_machine():
    assert explain_os_error(ZeroDivisionError("division by zero")) is None
    assert explain_os_error(FileNotFoundError(2, "No such file or directory", "x")) is None
