"""What limits training on hundreds of GPUs and on 100 million images: measured sizes and arithmetic.

    python benchmarks/limits.py    about five minutes on one core, 6 GiB, 1.5 GB in the temporary folder

The first part is measured on this machine (benchmarks/limits_measured.py), each size in a separate process.
The second part is arithmetic (benchmarks/cost_model.py); no GPU and no network was measured.
docs/scaling.md interprets the results.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import limits_measured
from cost_model import (
    FLOAT,
    Network,
    adam_bytes,
    adam_step_bytes,
    distance_operations,
    gather_traffic,
    gathered_bytes,
    gradient_traffic,
    norm_traffic,
    pairs_bytes,
    reads,
    rows,
    table_operations,
)
from limits_measured import IMAGES, JPEG, PEOPLE, SIZE
from machine import machine

MILLION, MB, GB, GIB = 10**6, 10**6, 10**9, 2**30
PLANS, TABLES, READS = (1, 10, 100), (1, 4, 10), 10  # millions of images
WORKERS, KNOWN = (8, 64, 512), (395, 10_000, MILLION)
AIM = 4_500  # rows per second and GPU (H200): the aim, not a measurement
DECODED = 1_650  # images per second of one loader process (docs/benchmarks.md)
TOKENS, TEXT_WIDTH = 4, 512  # per identity and modality
EMBED, FEATURES = 1024, 3072  # of g, and of f and g
IMAGES_IN_ALL = (MILLION, 10 * MILLION, 100 * MILLION)


def main() -> None:
    part = sys.argv[1:]
    if part:
        print(json.dumps(getattr(limits_measured, part[0])(int(part[1]) * MILLION, Path(part[2]))))
        return
    print(f"{date.today()}  {machine()}, one thread; seconds are those of the core")
    found = {}
    for name, millions in (*(("plan", n) for n in PLANS), ("requests", READS)):
        lines(f"{name}, {millions} million images", alone(name, millions))
    for millions in TABLES:
        with TemporaryDirectory() as folder:
            for name in ("indexed", "merged", "loaded"):
                found[name] = alone(name, millions, folder)
                lines(f"{name}, {millions} million images", found[name])
    columns("images, by the largest sizes above", {n: tables(found, n) for n in IMAGES_IN_ALL})
    network = limits_measured.network()
    lines("network of stage 2, RN50 at 288x144", asdict(network))
    for title, each in (("one person a GPU", 1), (f"{PEOPLE} people a GPU", PEOPLE)):
        columns(f"a step, {title}", {n: step(network, n * each, n) for n in WORKERS})
    columns("people known, on one GPU", {n: known(network, n) for n in KNOWN})


def alone(name: str, millions: int, folder: str = "") -> dict[str, Any]:
    """Run a part in a separate process, so that its peak memory is measured alone."""
    command = [sys.executable, __file__, name, str(millions), folder]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def tables(found: Mapping[str, Mapping[str, Any]], images: int) -> dict[str, float]:
    """The cost of this many images, extrapolated linearly from the measured bytes and seconds per image."""
    loaded, merged = found["loaded"], found["merged"]
    read, laid = images / loaded["rows"], images / merged["rows"]
    return {
        "samples.parquet, GB": images * loaded["file bytes a row"] / GB,
        "its columns in training, GB": images * loaded["bytes a row"] / GB,
        "in each process of the loader, GB": images * loaded["of which in each process of the loader"] / GB,
        "load, s": read * loaded["seconds"],
        "load, peak GB": read * loaded["peak GiB"] * GIB / GB,
        "merge after a new drop, minutes": laid * merged["seconds"] / 60,
        "merge, peak GB": laid * merged["peak GiB"] * GIB / GB,
        "shards of 20 kB images, TB": images * JPEG / GB / 1000,
        "stage 1's embeddings, GB": images * EMBED * FLOAT / GB,
        "features of a fifth as test images, GB": images / 5 * 2 * FEATURES * FLOAT / GB,
    }


def step(network: Network, people: int, workers: int) -> dict[str, float]:
    """The cost of a step for each of `workers` GPUs if the global batch has `people` identities."""
    batch = rows(people, IMAGES)
    own = batch / workers
    compute = own / AIM
    return {
        "rows of the global batch": batch,
        "rows of a GPU": own,
        f"time of a GPU at {AIM:,} rows/s, ms": compute * 1e3,
        "gradients received, MB": gradient_traffic(network.parameters, workers) / MB,
        "f and g received, both ways, MB": gather_traffic(batch, network.features, workers) / MB,
        "f and g held by each GPU, MB": gathered_bytes(batch, network.features) / MB,
        "batch norms received, MB": norm_traffic(network.norm_channels, workers) / MB,
        "batch norms: messages one after another": 2 * network.norms,
        "pairs of rows kept by WRT on each GPU, MB": pairs_bytes(own, batch, network.kept_matrices) / MB,
        "distances of WRT on each GPU, GFLOP": distance_operations(own, batch, network.features) / GB,
        "network on each GPU, GFLOP": network.operations * own / network.rows / GB,
        "image reads of all GPUs, 1/s": reads(people, IMAGES) / compute,
        "batches received by a GPU, bytes, GB/s": AIM * 3 * SIZE[0] * SIZE[1] / GB,
        f"cores that decode, at {DECODED:,} images/s": reads(people, IMAGES) / compute / DECODED,
    }


def known(network: Network, people: int) -> dict[str, float]:
    """The cost of this many identities on one GPU: prompts (stage 1), text table, HSE, classifiers."""
    tokens, batch = 2 * TOKENS * TEXT_WIDTH * people, rows(PEOPLE, IMAGES)
    heads = network.features * people
    # HSE uses view 1 and the infrared images: two rows of three.
    hse = table_operations(2 * batch // 3, people, network.embed, trained=False)
    return {
        "prompt tokens, GB": tokens * FLOAT / GB,
        "tokens with gradient and Adam's moments, GB": adam_bytes(tokens) / GB,
        "moved by a dense Adam step on them, GB": adam_step_bytes(tokens) / GB,
        "fused texts T, GB": people * network.embed * FLOAT / GB,
        "HSE, GFLOP a step": hse / GB,
        "HSE's logits, GB": 2 * batch // 3 * people * FLOAT / GB,
        "classifiers, GB": heads * FLOAT / GB,
        "classifiers with gradient and Adam's moments, GB": adam_bytes(heads) / GB,
        "classifiers, GFLOP a step": table_operations(batch, people, network.features, trained=True) / GB,
        "network without them, GFLOP a step": network.operations / GB,
        "gradients of all, dense, GB": network.parameters_for(people) * FLOAT / GB,
    }


def lines(title: str, found: Mapping[str, Any]) -> None:
    print(f"\n{title}")
    for name, value in found.items():
        print(f"  {name:48}{value:>14,}" if isinstance(value, (int, float)) else f"  {name:48}{value}")


def columns(title: str, found: Mapping[int, Mapping[str, float]]) -> None:
    print(f"\n{title:50}" + "".join(f"{n:>14,}" for n in found))
    for name in next(iter(found.values())):
        print(f"  {name:48}" + "".join(f"{column[name]:>14,.4g}" for column in found.values()))


if __name__ == "__main__":
    main()
