"""A training step of stage 2 on a GPU: RN50, 288x144, each precision, with and without torch.compile.

    python benchmarks/gpu.py                                   a batch of the published size, 96 rows
    python benchmarks/gpu.py --device cpu --people 2 --steps 1 a check that it runs, without a GPU

A row is an augmented view: two views of each of 32 visible images, one of each of 32 infrared images. The
matrix rate is that of a large matrix product in the same precision. The loader reads two images for three
rows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import cache, partial
from pathlib import Path

import torch
from speed_parts import IDENTITIES, SIZE, rn50
from torch.utils.flop_counter import FlopCounterMode

from csdn.data.loader import TrainBatch
from csdn.model.device import configure_torch
from csdn.params import load_params
from csdn.training.embedding import build_optimizer, freeze_text, training_step

ROOT = Path(__file__).parents[1]
PRECISIONS = ("float32", "tf32", "bf16")
IMAGES, MATRIX, WARM_UP = 4, 8192, 3


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options.add_argument("--people", type=int, default=8, help="P of the batch; K is 4")
    options.add_argument("--steps", type=int, default=30, help="timed steps")
    chosen = options.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no GPU; --device cpu checks that the benchmark runs")
    name = torch.cuda.get_device_name() if chosen.device == "cuda" else "CPU"
    print(f"{date.today()}  {name}, torch {torch.__version__}, {3 * chosen.people * IMAGES} rows a step\n")
    print(f"{'':22}{'ms a step':>10}{'rows/s':>9}{'of the rate':>13}{'GiB':>7}{'images/s to read':>18}")
    for precision in PRECISIONS:
        for compiled in (False, True):
            line(precision, compiled, chosen)


def line(precision: str, compiled: bool, chosen: argparse.Namespace) -> None:
    device = configure_torch(0, chosen.device, precision)
    step = prepared(precision, compiled, chosen.people, device)
    for _ in range(WARM_UP if chosen.steps > 1 else 1):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(step, chosen.steps, device)
    rows = 3 * chosen.people * IMAGES
    share = operations(chosen.people, device) / seconds / matrix_rate(precision, device)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    label = f"{precision}{', compiled' if compiled else ''}"
    print(
        f"{label:22}{1000 * seconds:10.1f}{rows / seconds:9.0f}{share:13.1%}{memory:7.1f}"
        f"{2 / 3 * rows / seconds:18.0f}",
        flush=True,
    )


@cache
def operations(people: int, device: torch.device) -> int:
    """Floating-point operations of a step."""
    step = prepared("float32", False, people, device)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def prepared(precision: str, compiled: bool, people: int, device: torch.device) -> Callable[[], object]:
    """A function that runs one step of stage 2 on a batch that is already on the device."""
    params = load_params(ROOT / "params.yaml")
    settings = params.embedding.model_copy(update={"images_per_identity": IMAGES})
    torch.manual_seed(0)
    model = rn50().to(device).channels_last().train()
    freeze_text(model)
    optimizer = build_optimizer(model, settings)
    count = people * IMAGES
    views = [torch.randn(count, 3, *SIZE, device=device) for _ in range(3)]
    labels = torch.arange(people, device=device).repeat_interleave(IMAGES)
    batch = TrainBatch(*views, labels, epoch=0, step=0)
    text_table = torch.randn(IDENTITIES, model.config.embed_dim, device=device)
    trained = torch.compile(model) if compiled else model
    return lambda: training_step(trained, optimizer, batch, text_table, settings, precision)


def matrix_rate(precision: str, device: torch.device) -> float:
    """Floating-point operations per second of a large matrix product in this precision."""
    side = MATRIX if device.type == "cuda" else MATRIX // 8
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, side, side, device=device).to(kind)
    product = partial(torch.mm, a, b)
    product()
    return 2 * side**3 / timed(product, 10, device)


def timed(run: Callable[[], object], times: int, device: torch.device) -> float:
    """Mean seconds of one run, including all work on the device."""
    began = time.perf_counter()
    for _ in range(times):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


if __name__ == "__main__":
    main()
