"""PyTorch's device, threads, arithmetic and memory, set once by each process that computes."""

from __future__ import annotations

import ctypes
import sys

import torch

from csdn.runtime.process import available_cores

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def configure_torch(threads: int, device: str, precision: str = "float32") -> torch.device:
    """Set the number of threads (0: one per core) and deterministic arithmetic; returns the device.

    device: "auto" is a GPU if there is one. precision: only "tf32" lets a GPU multiply float32 matrices with
    10 bits of fraction.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads or available_cores())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # Some operations have no deterministic form on GPUs: there PyTorch warns instead of raising an error.
    # use_deterministic_algorithms would import torch's compiler, which takes seconds and is not used here.
    torch.set_deterministic_debug_mode("error" if device == "cpu" else "warn")
    torch.utils.deterministic.fill_uninitialized_memory = False  # no code here reads uninitialised memory
    if device == "cpu":
        keep_memory()
    return torch.device(device)


def keep_memory() -> None:
    """Let the allocator of Linux keep freed memory for the next step.

    Otherwise the large tensors of each step get new pages, which the kernel fills with zeros: a fifth of the
    time of a step of RN50 (docs/benchmarks.md). For threads other than the first, MALLOC_ARENA_MAX=1 must be
    set when the process starts.
    """
    if sys.platform != "linux":
        return
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt"):  # musl does not
        allocator.mallopt(_M_MMAP_MAX, 0)
        allocator.mallopt(_M_TRIM_THRESHOLD, -1)
