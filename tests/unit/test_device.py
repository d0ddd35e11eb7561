"""Memory that a training step frees is reused by the next; new pages would be filled with zeros each time."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
import torch

from csdn.model.device import configure_torch

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="of Linux's allocator")
PAGE = resource.getpagesize()
STEP = 256 << 20  # bytes, more than an allocator keeps by itself
# Until each large piece has found its place among the small ones, which differs from process to process.
SETTLING, STEPS = 8, 8


def pages_of_steps() -> int:
    """Fresh pages of STEPS equal steps, after the first ones, in a process that has configured torch."""
    configure_torch(1, "cpu")
    for _ in range(SETTLING):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(STEPS):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def step() -> None:
    for size in (STEP // 4, STEP // 2, STEP // 4):
        torch.ones(size // 4).sum()


def in_a_thread() -> int:
    """`pages_of_steps` in a thread of its own, as Ray Train runs its loop."""
    found: list[int] = []
    thread = Thread(target=lambda: found.append(pages_of_steps()))
    thread.start()
    thread.join()
    return found[0]


@LINUX
def test_memory_of_a_step_is_reused_by_the_next():
    command = [sys.executable, "-c", "import test_device; print(test_device.pages_of_steps())"]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert int(found.stdout) * PAGE < STEP / 8


@LINUX
@pytest.mark.slow
def test_memory_of_a_worker_is_reused_by_its_next_step():
    from csdn.cluster.session import ray_session

    with ray_session(None, cpus=1):
        import ray
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not know the tests
        pages = ray.get(ray.remote(in_a_thread).remote())
    assert pages * PAGE < STEPS * STEP / 2  # small things of its other threads may come to lie in between
