"""Where torch computes, and with how many threads."""

from __future__ import annotations

import ctypes
import sys

import torch

from csdn.runtime.process import available_cores

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def configure_torch(threads: int, device: str, precision: str = "float32") -> torch.device:
    """Set threads (0: one per core) and repeatable arithmetic; "auto" takes a GPU if there is one.

    precision: "tf32" lets a GPU multiply float32 matrices with 10 bits of fraction; others do not.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads or available_cores())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # A GPU has no repeatable form of some operations: there it warns instead of stopping.
    # Not use_deterministic_algorithms: it loads the compiler, for seconds, to tell it what nobody compiles.
    torch.set_deterministic_debug_mode("error" if device == "cpu" else "warn")
    torch.utils.deterministic.fill_uninitialized_memory = False  # nobody here reads memory before writing it
    if device == "cpu":
        keep_memory()
    return torch.device(device)


def keep_memory() -> None:
    """Let the allocator of Linux keep what tensors free, for the next step's.

    Else a step's large ones are fresh pages, which the system fills with zeros one by one: a fifth of a step
    of RN50 (docs/benchmarks.md). Threads but the first need MALLOC_ARENA_MAX=1 from the process's start.
    """
    if sys.platform != "linux":
        return
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt"):  # musl has none
        allocator.mallopt(_M_MMAP_MAX, 0)
        allocator.mallopt(_M_TRIM_THRESHOLD, -1)
