"""Stage 2 on a GPU, RN50 at 288x144: speed of a step, the largest batch, and the loader beside it.

    python benchmarks/gpu.py                                    about four minutes on one card
    python benchmarks/gpu.py --device cpu --people 2 --steps 1  what the precisions do on this CPU

A row is an augmented view: two views of each of 32 visible images, one of each of 32 infrared images, 96 rows
in the published batch (8 people x (4 + 4)). The first table has its batches on the device. The rate that
"of rate" refers to is that of a large matrix product in the same precision. The second table trains from
JPEGs through the loader; "waits" is the share of the time in which the loop waits for a batch. An epoch is
one of SYSU-MM01: 22,258 visible training images, the larger modality.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path

import torch
from machine import machine
from speed_parts import IDENTITIES, SIZE, rn50
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from feed_data import train_source, write_data

from csdn.data.catalog import load_dataset
from csdn.data.loader import BATCHES_AHEAD, TrainBatch, TrainLoader
from csdn.data.sampler import epoch_batches
from csdn.model.device import compiled, configure_torch
from csdn.params import load_params
from csdn.runtime.process import available_cores
from csdn.training.embedding import build_optimizer, freeze_text, training_step
from csdn.training.log import DataWaitTimer

ROOT = Path(__file__).parents[1]
PUBLISHED, IMAGES = 8, 4  # P and K
VISIBLE, INFRARED = 22_258, 11_909  # training images of SYSU-MM01
LOADED_PEOPLE, LOADED_EACH, PADDING = 384, 16, 10  # of the images that the loader reads
LOADED_LARGEST = 96  # people of a batch, so that an epoch of these images has 16 steps
MATRIX, WARM_UP = 8192, 3


@dataclass(frozen=True)
class Variant:
    """One line of a table."""

    precision: str
    people: int
    compiled: bool = False
    deterministic: bool = True

    @property
    def rows(self) -> int:
        return 3 * self.people * IMAGES

    def __str__(self) -> str:
        extras = ", compiled" * self.compiled + ", any kernels" * (not self.deterministic)
        return f"{self.precision}, {self.rows} rows{extras}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options.add_argument("--people", type=int, default=PUBLISHED, help="P of the smaller batch; K is 4")
    options.add_argument("--steps", type=int, default=40, help="timed steps of the smaller batch")
    options.add_argument("--processes", type=int, default=max(1, available_cores() - 1), help="of the loader")
    chosen = options.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no GPU; --device cpu measures the precisions on this CPU")
    name = torch.cuda.get_device_name() if chosen.device == "cuda" else machine()
    print(f"{date.today()}  {name}, torch {torch.__version__}\n")
    print(f"{'batches on the device':38}{'ms/step':>9}{'rows/s':>8}{'TFLOP/s':>9}{'of rate':>9}{'GiB':>7}")
    variants = list(of_cpu(chosen.people) if chosen.device == "cpu" else of_gpu(chosen.people))
    for variant in variants:
        try:
            line(variant, chosen.device, steps_of(variant, chosen))
        except torch.OutOfMemoryError:
            print(f"{variant!s:38} does not fit", flush=True)
    if chosen.device == "cuda":
        print(f"\n{'from JPEGs, by the loader':38}{'ms/step':>9}{'rows/s':>8}{'waits':>9}{'min/epoch':>10}")
        with tempfile.TemporaryDirectory() as folder:
            write_data(Path(folder), LOADED_PEOPLE, LOADED_EACH, LOADED_EACH, sizes=(SIZE,))
            largest = min(LOADED_LARGEST, max(variant.people for variant in variants))
            for people in (chosen.people, largest):
                variant = Variant("bf16", people)
                loaded_line(variant, Path(folder), chosen.processes)


def of_cpu(people: int) -> list[Variant]:
    return [Variant("float32", people), Variant("bf16", people)]


def of_gpu(people: int) -> list[Variant]:
    """The precisions at the smaller batch, and what can be chosen with bf16 there and at the largest."""
    largest = largest_people(people)
    return [
        Variant("float32", people),
        Variant("tf32", people),
        Variant("bf16", people),
        Variant("bf16", people, compiled=True),
        Variant("bf16", largest),
        Variant("bf16", largest, deterministic=False),
        Variant("bf16", largest, compiled=True),
    ]


def steps_of(variant: Variant, chosen: argparse.Namespace) -> int:
    """Timed steps: fewer of a larger batch."""
    return max(min(chosen.steps, 5), chosen.steps * chosen.people // variant.people)


def largest_people(people: int) -> int:
    """The largest of P = people x 1, 1.5, 2, 3, 4, 6, ... of which a step in bf16 fits into the card."""
    sizes = chain.from_iterable((people * 2**n, people * 3 * 2**n // 2) for n in range(20))
    fitting = people
    for size in sizes:
        try:
            step = prepared(Variant("bf16", size), "cuda")
            step()
            step()  # the first one made the optimiser's state at its end
        except torch.OutOfMemoryError:
            break
        finally:
            step = None
            gc.collect()
            torch.cuda.empty_cache()
        fitting = size
    return fitting


# Batches that are on the device.


def line(variant: Variant, device: str, steps: int) -> None:
    step = prepared(variant, device)
    for _ in range(WARM_UP if steps > 1 else 1):
        step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(step, steps, device)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    del step
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    rate = operations(device) * variant.people / seconds
    share = rate / matrix_rate(variant.precision, device)
    print(
        f"{variant!s:38}{1000 * seconds:9.1f}{variant.rows / seconds:8.0f}{rate / 1e12:9.2f}{share:9.1%}"
        f"{memory:7.1f}",
        flush=True,
    )


def prepared(variant: Variant, device: str) -> Callable[[], object]:
    """A function that runs one step of stage 2 on a batch that is already on the device."""
    step = Step(variant, device)
    count = variant.people * IMAGES
    views = torch.randn(3, count, 3, *SIZE, device=step.device)
    labels = torch.arange(variant.people, device=step.device).repeat_interleave(IMAGES) % IDENTITIES
    batch = TrainBatch(*views, labels, epoch=0, step=0)
    return lambda: step(batch)


class Step:
    """Network, optimiser and texts of a step on a batch."""

    def __init__(self, variant: Variant, device: str) -> None:
        self.device = configure_torch(0, device, variant.precision, variant.deterministic)
        self.precision = variant.precision
        update = {"images_per_identity": IMAGES, "identities_per_batch": variant.people}
        self.settings = load_params(ROOT / "params.yaml").embedding.model_copy(update=update)
        torch.manual_seed(0)
        model = rn50(text_layers=1).to(self.device).channels_last().train()
        freeze_text(model)
        self.optimizer = build_optimizer(model, self.settings)
        self.model = compiled(model) if variant.compiled else model
        self.text_table = torch.randn(IDENTITIES, model.config.embed_dim, device=self.device)

    def __call__(self, batch: TrainBatch) -> object:
        return training_step(
            self.model, self.optimizer, batch, self.text_table, self.settings, self.precision
        )


@cache
def operations(device: str) -> float:
    """Floating-point operations of a step for each person of the batch."""
    step = prepared(Variant("float32", 2), device)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 2


@cache
def matrix_rate(precision: str, device: str) -> float:
    """Floating-point operations per second of a large matrix product in this precision."""
    configure_torch(0, device, precision)
    side = MATRIX if device == "cuda" else MATRIX // 8
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, side, side, device=device).to(kind)
    product = partial(torch.mm, a, b)
    product()
    return 2 * side**3 / timed(product, 20, device)


def timed(run: Callable[[], object], times: int, device: str) -> float:
    """Mean seconds of one run, including all work on the device."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


# Batches that the loader makes meanwhile.


def loaded_line(variant: Variant, data: Path, processes: int) -> None:
    """Batches that were made ahead of the timing do not count: as many steps come before it."""
    ahead = (processes + 1) * BATCHES_AHEAD
    step, waiting = Step(variant, "cuda"), DataWaitTimer()
    table = load_dataset(data).train_table()
    source = train_source(table, data / "shards", variant.people, IMAGES, SIZE, PADDING)
    loader = TrainLoader(source, processes, step.device)
    batches = waiting.timed(chain.from_iterable(map(loader.epoch, range(10**6))))
    for batch in islice(batches, ahead):
        step(on_known_people(batch))
    torch.cuda.synchronize()
    waiting.data_wait_fraction()
    seconds = timed(lambda: step(on_known_people(next(batches))), 2 * ahead, "cuda")
    epoch = epoch_batches(VISIBLE, INFRARED, variant.people, IMAGES) * seconds / 60
    print(
        f"{f'{variant}, {processes} processes':38}{1000 * seconds:9.1f}{variant.rows / seconds:8.0f}"
        f"{waiting.data_wait_fraction():9.1%}{epoch:10.2f}",
        flush=True,
    )


def on_known_people(batch: TrainBatch) -> TrainBatch:
    return replace(batch, labels=batch.labels % IDENTITIES)


if __name__ == "__main__":
    main()
