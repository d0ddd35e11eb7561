"""How many people and images the public benchmarks have: a copy that differs is not the benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from csdn.data.drops import Drop

# (side, what) -> how many; what: "people", or images by modality or camera.
PUBLISHED = {
    "sysu": {
        ("train", "people"): 395,
        ("test", "people"): 96,
        ("test", "infrared"): 3803,
        ("test", "cam3"): 1883,
        ("test", "cam6"): 1920,
    },
    "regdb": {
        ("train", "people"): 206,
        ("test", "people"): 206,
        ("test", "visible"): 2060,
        ("test", "infrared"): 2060,
    },
    "llcm": {("train", "people"): 713},
}


def unlike_published(drops: Sequence[Drop], samples: pa.Table) -> list[str]:
    """In words, where a benchmark's drop differs from the published data; `samples` as in samples.parquet.

    A drop with less than half as many training people is a miniature, and is not compared.
    """
    return [
        f"{drop}: {count} {side} {what}{'' if what == 'people' else ' images'}, "
        f"{drop.layout} as published has {published}"
        for drop in drops
        if drop.layout in PUBLISHED
        for (side, what), published, count in _compared(drop, samples)
        if count != published
    ]


def _compared(drop: Drop, samples: pa.Table) -> list[tuple[tuple[str, str], int, int]]:
    rows = samples.filter(pa.compute.equal(samples["drop"], drop.id))
    side, modality, camera = (rows[name].to_pylist() for name in ("side", "modality", "camera"))
    people = Counter(of for of, _ in set(zip(side, rows["person_row"].to_pylist(), strict=True)))
    counts = Counter(zip(side, modality, strict=True)) + Counter(zip(side, camera, strict=True))
    counts.update({(of, "people"): count for of, count in people.items()})
    published = PUBLISHED[drop.layout]
    if 2 * people["train"] < published["train", "people"]:
        return []
    return [(what, number, counts[what]) for what, number in published.items()]
