"""The optimised implementation compared with the plain computation, part by part.

    python benchmarks/speed.py                   one core, CLIP RN50's sizes, 288x144
    python benchmarks/speed.py --device cuda     the same on a GPU

"Plain" is tests/support/plain.py: the method as published, without optimisation. Both sides have the same
random weights and inputs, and their results are compared before the measurement. The floor is the number of
floating-point operations of our side, divided by the rate of a large matrix product on this machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import date

import torch
from machine import machine
from speed_parts import Part, parts, rn50
from torch.utils.flop_counter import FlopCounterMode

from csdn.evaluation import protocol
from csdn.model.device import configure_torch

MATRIX = 2048
# SYSU-MM01: visible test images, and the (person, camera) folders that hold them (all-search).
TEST_IMAGES, FOLDERS, GALLERY_CAMERAS = 6775, 301, (1, 2, 4, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", default="", metavar="WORDS", help="only parts whose names contain this")
    parser.add_argument("--fresh-memory", action="store_true", help="without csdn.model.device.keep_memory")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.fresh_memory:
        torch.set_num_threads(1)
    else:
        configure_torch(1, options.device)
    torch.manual_seed(0)
    rate = matrix_rate(device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{machine()}, one thread"
    print(f"{date.today()}  {where}; torch {torch.__version__}")
    print(f"matrix product: {rate / 1e9:.0f} GFLOP/s, float32\n")
    print(f"{'':34}{'plain':>10}{'ours':>10}{'ratio':>8}{'aim':>6}{'floor':>10}")
    for part in parts(rn50().to(device), device):
        if options.only not in part.name:
            continue
        check(part)
        times = [best(side, part.rounds, device) for side in (part.plain, part.ours)]
        floor = operations(part.ours) / rate
        cells = "".join(f"{seconds * 1e3:8.1f}ms" for seconds in times)
        bound = f"{floor * 1e3:8.1f}ms" if floor else f"{'':>10}"
        print(f"{part.name:34}{cells}{times[0] / times[1]:8.2f}{part.aim or '':>6}{bound}", flush=True)
    print("\ngallery images of the ten SYSU-MM01 trials (6,775 images, spread evenly over 301 folders)")
    for shots in (1, 10):
        drawn, distinct = gallery_images(shots)
        print(f"  {shots:2}-shot: {drawn:6,} drawn, {distinct:5,} distinct: ratio {drawn / distinct:.2f}")
    print(f"evaluate embeds all {TEST_IMAGES:,} once: the report and the camera pairs need them too")


def gallery_images(shots: int) -> tuple[int, int]:
    """Gallery images of all trials: total number drawn, and number of distinct images."""
    places = [divmod(number % FOLDERS, len(GALLERY_CAMERAS)) for number in range(TEST_IMAGES)]
    index = {
        "person": [person for person, _ in places],
        "camera": [GALLERY_CAMERAS[camera] for _, camera in places],
        "modality": ["visible"] * TEST_IMAGES,
        "path": [f"{number:05}" for number in range(TEST_IMAGES)],
    }
    (search,) = protocol("sysu", index, shots=shots)
    return sum(map(len, search.galleries)), len({row for rows in search.galleries for row in rows.tolist()})


def check(part: Part) -> None:
    """Run both sides once, as warm-up; raises AssertionError if they differ."""
    one, other = part.plain(), part.ours()
    torch.testing.assert_close(other, one, rtol=part.tolerance, atol=part.tolerance * float(one.abs().max()))


def best(side: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Seconds of the fastest of `rounds` calls."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        side()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


def operations(side: Callable[[], object]) -> int:
    """Floating-point operations of one call: matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        side()
    return counter.get_total_flops()


def matrix_rate(device: torch.device) -> float:
    """Floating-point operations per second of a large float32 matrix product."""
    a, b = torch.randn(2, MATRIX, MATRIX, device=device)
    torch.mm(a, b)
    return 2 * MATRIX**3 / best(lambda: torch.mm(a, b), 5, device)


if __name__ == "__main__":
    main()
