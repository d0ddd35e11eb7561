"""PyTorch's device, threads, arithmetic and memory, set once by each process that computes."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from csdn.runtime.errors import UserError
from csdn.runtime.process import available_cores

if TYPE_CHECKING:
    from csdn.params import Params, ScalingParams, TrainingParams

_AMPERE = (8, 0)  # the first CUDA capability whose cards multiply bfloat16 faster than float32
_CPU_BF16 = {"amx_bf16", "avx512_bf16"}  # the same of CPUs, as Linux names their abilities
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def configure_torch(
    threads: int, device: str, precision: str = "float32", deterministic: bool = True
) -> torch.device:
    """Set the number of threads (0: one per core) and the arithmetic; returns the device.

    device: "auto" is a GPU if there is one. precision: only "tf32" lets a GPU multiply float32 matrices with
    10 bits of fraction. deterministic: without it, a GPU tries several kernels for each convolution and takes
    the fastest, which may differ from run to run; a CPU is always deterministic.
    """
    # cuBLAS reads it when it starts, and then takes the same kernels whatever memory is free.
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads or available_cores())
    rounding = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = rounding
    torch.backends.cudnn.conv.fp32_precision = rounding  # type: ignore[attr-defined]  # it exists
    torch.backends.cudnn.benchmark = not deterministic
    # Some operations have no deterministic form on GPUs: there PyTorch warns instead of raising an error.
    # use_deterministic_algorithms would import torch's compiler, which takes seconds.
    on_gpu = "warn" if deterministic else "default"
    torch.set_deterministic_debug_mode("error" if device == "cpu" else on_gpu)
    # No code here reads uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it exists
    if device == "cpu":
        keep_memory()
    return torch.device(device)


def configured_device(params: Params) -> torch.device:
    """`configure_torch` for a process that computes alone."""
    scaling, training = params.scaling, params.training
    return configure_torch(scaling.threads, scaling.device, training.precision, training.deterministic)


def worker_device(scaling: ScalingParams, training: TrainingParams) -> torch.device:
    """`configure_torch` for a worker of Ray."""
    device = "cuda" if scaling.use_gpu else "cpu"
    threads = scaling.threads or scaling.cpus_per_worker
    return configure_torch(threads, device, training.precision, training.deterministic)


def compiled(network: nn.Module) -> nn.Module:
    """`network` by torch.compile, with the same parameters. Raises UserError without a C++ compiler."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError(
            "training.compile needs a C++ compiler (c++, g++ or clang++), and this machine has none in PATH; "
            "install one, or set training.compile to false"
        )
    return torch.compile(network, dynamic=False)  # type: ignore[return-value]  # of a Module it is a Module


def with_precision(params: Params, note: Callable[[str], None]) -> Params:
    """The parameters with a precision in place of "auto": what is fastest where the networks compute.

    `note` gets a line that says which, and why. On a cluster with GPUs it is bf16; the workers are not asked.
    """
    if params.training.precision != "auto":
        return params
    precision, reason = _fastest(params)
    note(f"precision {precision}: {reason} (training.precision: auto)")
    training = params.training.model_copy(update={"precision": precision})
    return params.model_copy(update={"training": training})


def _fastest(params: Params) -> tuple[str, str]:
    scaling = params.scaling
    if scaling.workers and scaling.use_gpu:
        return "bf16", "GPUs of a cluster; set float32 for cards older than Ampere"
    if not scaling.workers and scaling.device != "cpu" and torch.cuda.is_available():
        fast = torch.cuda.get_device_capability() >= _AMPERE
        return ("bf16" if fast else "float32"), torch.cuda.get_device_name()
    found = sorted(_CPU_BF16 & _cpu_flags())
    return ("bf16", f"this CPU has {found[0]}") if found else ("float32", "this CPU has no bfloat16")


def _cpu_flags() -> set[str]:
    """What Linux says that this CPU can do; nothing elsewhere."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split())
    return set()


def in_precision(
    embed: Callable[[Tensor, str], Tensor], precision: str, device: torch.device
) -> Callable[[Tensor, str], Tensor]:
    """`embed` under autocast for "bf16"; its features are float32 all the same."""
    if precision != "bf16":
        return embed

    def lower(images: Tensor, modality: str) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return embed(images, modality).float()

    return lower


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
