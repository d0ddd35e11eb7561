"""How many people and images the public benchmarks have: a copy that differs is not the benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from csdn.data.drops import Drop

# (side, "people", "") -> how many; (side, column, value) -> images: RegDB's cameras are called as modalities.
PUBLISHED = {
    "sysu": {
        ("train", "people", ""): 395,
        ("test", "people", ""): 96,
        ("test", "modality", "infrared"): 3803,
        ("test", "camera", "cam3"): 1883,
        ("test", "camera", "cam6"): 1920,
    },
    "regdb": {
        ("train", "people", ""): 206,
        ("test", "people", ""): 206,
        ("test", "modality", "visible"): 2060,
        ("test", "modality", "infrared"): 2060,
    },
    "llcm": {("train", "people", ""): 713},
}


def unlike_published(drops: Sequence[Drop], samples: pa.Table) -> list[str]:
    """In words, where a benchmark's drop differs from the published data; `samples` as in samples.parquet.

    A drop with less than half as many training people is a miniature, and is not compared.
    """
    return [
        f"{drop}: {count} {side} {f'{value} images' if value else column}, "
        f"{drop.layout} as published has {published}"
        for drop in drops
        if drop.layout in PUBLISHED
        for (side, column, value), published, count in _compared(drop, samples)
        if count != published
    ]


def _compared(drop: Drop, samples: pa.Table) -> list[tuple[tuple[str, str, str], int, int]]:
    rows = samples.filter(pa.compute.equal(samples["drop"], drop.id))
    side = rows["side"].to_pylist()
    people = set(zip(side, rows["person_row"].to_pylist(), strict=True))
    counts = Counter((of, "people", "") for of, _ in people)
    for column in ("modality", "camera"):
        counts.update((of, column, value) for of, value in zip(side, rows[column].to_pylist(), strict=True))
    published = PUBLISHED[drop.layout]
    if 2 * counts["train", "people", ""] < published["train", "people", ""]:
        return []
    return [(what, number, counts[what]) for what, number in published.items()]
