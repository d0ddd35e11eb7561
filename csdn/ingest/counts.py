"""The summary of ingest: counts as JSON (metrics/ingest.json), and the lines that are printed at the end.

It compares each benchmark with its published counts, and warns of labels and cameras that look wrong.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from csdn.data.outputs import examples, in_words
from csdn.ingest.ledger import SHORT, Drop, Status
from csdn.ingest.merge import IndexedDrop, Merged
from csdn.ingest.pack import Range, range_of


def summary(
    drops: Sequence[IndexedDrop], merged: Merged, grey16_range: Mapping[str, Range]
) -> dict[str, Any]:
    """Counts as JSON values; they depend on the data and the ledger alone."""
    held = {held.drop.id for held in merged.held}
    used = [d for d in drops if d.drop.status == Status.ACCEPTED and d.drop.id not in held]
    return {
        "drops": {"used": len(used), "held": _held(merged), "left_out": _left_out(drops)},
        "people": dict.fromkeys(("train", "test", "waiting", "removed"), 0)
        | _value_counts(merged.people["status"]),
        "images": {split: _counts(merged.counts, split) for split in ("train", "test")},
        "cameras": _cameras(merged.counts),
        "duplicates": merged.duplicates,
        "quarantined": dict(sorted(_value_counts(merged.quarantine["reason"]).items())),
        "labels": merged.labels,
        "unlike_published": unlike_published([d.drop for d in used], merged.counts),
        "few_grey_levels": few_levels([d.grey16 for d in used], grey16_range),
        "ignored_files": sum(d.ignored for d in drops if d.drop.status != Status.REJECTED),
    }


def _held(merged: Merged) -> list[dict[str, Any]]:
    return [
        {
            "id": held.drop.id,
            "address": held.drop.address,
            "images": held.images,
            "bad": held.bad,
            "bad_fraction": round(held.bad / held.images, 6),
            "reasons": dict(sorted(Counter(reason for _, reason in held.refused).items())),
            "examples": examples(held.refused),
            "cameras": list(held.cameras),
        }
        for held in merged.held
    ]


def _left_out(drops: Sequence[IndexedDrop]) -> list[dict[str, str]]:
    """Drops that a person rejected or held; the ledger has the reason."""
    return [
        {"id": d.drop.id, "address": d.drop.address, "status": str(d.drop.status), "reason": d.drop.reason}
        for d in drops
        if d.drop.status != Status.ACCEPTED
    ]


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in column.value_counts().to_pylist()}


def _sums(counts: pa.Table, *columns: str) -> dict[tuple[Any, ...], int]:
    """The sum of `images` for each combination of values."""
    sums = counts.group_by(list(columns), use_threads=False).aggregate([("images", "sum")])
    values = zip(*(sums[name].to_pylist() for name in columns), strict=True)
    return dict(zip(values, sums["images_sum"].to_pylist(), strict=True))


def _counts(counts: pa.Table, split: str) -> dict[str, int]:
    sums = _sums(counts, "split", "modality")
    return {modality: sums.get((split, modality), 0) for modality in ("visible", "infrared")}


def _cameras(counts: pa.Table) -> dict[str, dict[str, int]]:
    sums = sorted(_sums(counts, "modality", "camera").items())
    return {
        modality: {camera: count for (of, camera), count in sums if of == modality}
        for modality in ("visible", "infrared")
    }


def summary_lines(metrics: dict[str, Any]) -> list[str]:
    """The summary as lines of text; after a held drop come the commands that decide about it."""
    people, images = metrics["people"], metrics["images"]
    lines = [f"{'':10}{'people':>8}{'visible':>10}{'infrared':>10}"]
    lines += [
        f"{split:10}{people[split]:>8}{images[split]['visible']:>10}{images[split]['infrared']:>10}"
        for split in ("train", "test")
    ]
    warnings = metrics["unlike_published"] + metrics["labels"] + metrics["few_grey_levels"]
    lines += [f"WARNING: {warning}" for warning in warnings]
    notes = {
        f"{people['waiting']} people wait for images of the other modality": people["waiting"],
        f"{metrics['duplicates']} images came more than once and are used once": metrics["duplicates"],
        f"{metrics['ignored_files']} files are no images of the data set and were ignored": metrics[
            "ignored_files"
        ],
    }
    lines += [note for note, count in notes.items() if count]
    lines += [f"quarantined: {count} x {reason}" for reason, count in metrics["quarantined"].items()]
    for held in metrics["drops"]["held"]:
        lines += _held_lines(held)
    for drop in metrics["drops"]["left_out"]:
        lines.append(
            f"left out: drop {drop['id'][:SHORT]} ({drop['address']}), {drop['status']}: {drop['reason']}"
        )
    return lines


def _held_lines(held: dict[str, Any]) -> list[str]:
    short = held["id"][:SHORT]
    reasons = in_words(held["reasons"], held["examples"])
    why = "more than ingest.max_bad_fraction allows"
    if held["cameras"]:
        why = f"and {', '.join(held['cameras'])} has no good image"
    return [
        f"HELD: drop {short} ({held['address']}) is left out: {held['bad']} of {held['images']} images "
        f"({held['bad_fraction']:.1%}) are bad, {why}: {reasons}",
        f"  take it as it is:  csdn accept {short} --reason '...'",
        f"  leave it out:      csdn reject {short} --reason '...'",
    ]


# Benchmarks: a copy whose counts differ from the published ones is not the benchmark.


# (split, "people", "") -> number of people; (split, column, value) -> number of images. RegDB's cameras are
# named after the modalities.
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


def unlike_published(drops: Sequence[Drop], counts: pa.Table) -> list[str]:
    """A line for each count of a benchmark's drop that is not the published one; counts: as in
    csdn.ingest.merge.Merged.

    A drop with less than half of the published training people is a miniature, which is not compared.
    """
    return [
        f"{drop}: {count} {split} {f'{value} images' if value else column}, "
        f"{drop.layout} as published has {published}"
        for drop in drops
        if drop.layout in PUBLISHED
        for (split, column, value), published, count in _compared(drop, counts)
        if count != published
    ]


def _compared(drop: Drop, counts: pa.Table) -> list[tuple[tuple[str, str, str], int, int]]:
    rows = counts.filter(pc.equal(counts["drop"], drop.id))
    found = Counter((split, "people", "") for split, _ in _sums(rows, "split", "person_row"))
    for column in ("modality", "camera"):
        sums = _sums(rows, "split", column)
        found.update({(split, column, value): images for (split, value), images in sums.items()})
    published = PUBLISHED[drop.layout]
    if 2 * found["train", "people", ""] < published["train", "people", ""]:
        return []
    return [(what, number, found[what]) for what, number in published.items()]


# Grey images of 16 bits (csdn.ingest.pack): a warning for each camera whose images keep few grey levels.


Facts = Mapping[str, int]  # of a camera: images, low, high, span

FULL: Range = (0, 65535)
FEW_LEVELS = 64  # of 256; fewer cause a warning
ODD_IMAGES = 1  # percent of the darkest and of the brightest images of a camera that are ignored


def facts_of_cameras(images: Iterable[tuple[str, int, int]]) -> dict[str, dict[str, int]]:
    """(camera, low, high) of each image -> by camera: images, low, high, and the median span of an image."""
    found: dict[str, list[tuple[int, int]]] = {}
    for camera, low, high in images:
        found.setdefault(camera, []).append((low, high))
    return {camera: _facts(np.array(extremes)) for camera, extremes in sorted(found.items())}


def _facts(extremes: np.ndarray) -> dict[str, int]:
    lows, highs = extremes.T
    return {
        "images": len(extremes),
        "low": int(np.percentile(lows, ODD_IMAGES, method="nearest")),
        "high": int(np.percentile(highs, 100 - ODD_IMAGES, method="nearest")),
        "span": int(np.median(highs - lows)),
    }


def few_levels(drops: Iterable[Mapping[str, Facts]], ranges: Mapping[str, Range]) -> list[str]:
    """A warning for each camera whose images keep few grey levels, with the range to set.

    drops: `facts_of_cameras` of each drop. A range for a camera without such images causes a warning too.
    """
    of_camera: dict[str, list[Facts]] = {}
    for drop in drops:
        for camera, facts in drop.items():
            of_camera.setdefault(camera, []).append(facts)
    warnings = [
        line for camera in sorted(of_camera) if (line := _warning(camera, _joined(of_camera[camera]), ranges))
    ]
    unused = sorted(set(ranges) - {"*", *of_camera})
    return warnings + [
        f"ingest.grey16_range: no camera {camera!r} has grey images of 16 bits" for camera in unused
    ]


def _joined(drops: Sequence[Facts]) -> Facts:
    """The facts of a camera's images in several drops."""
    images = [facts["images"] for facts in drops]
    return {
        "images": sum(images),
        "low": min(facts["low"] for facts in drops),
        "high": max(facts["high"] for facts in drops),
        "span": int(np.average([facts["span"] for facts in drops], weights=images)),
    }


def _warning(camera: str, facts: Facts, ranges: Mapping[str, Range]) -> str | None:
    given = range_of(camera, ranges)
    levels = grey_levels(facts, given or FULL)
    if levels >= FEW_LEVELS:
        return None
    low, high = facts["low"], max(facts["high"], facts["low"] + 1)
    how = f"with ingest.grey16_range {list(given)}" if given else "in 8 bits"
    return (
        f"camera {camera}: {facts['images']} grey images of 16 bits, values {low} to {high}: {how} an image "
        f"keeps about {levels} of 256 grey levels. For more contrast, in params.yaml, ingest: "
        f"grey16_range: {{{json.dumps(camera)}: [{low}, {high}]}} (docs/images.md)"
    )


def grey_levels(facts: Facts, given: Range) -> int:
    """About how many of 256 grey levels an image of the camera keeps where the range `given` becomes
    0..255.
    """
    inside = min(facts["high"], given[1]) - max(facts["low"], given[0])
    share = max(0, inside) / max(1, facts["high"] - facts["low"])
    return min(256, 1 + int(256 * facts["span"] * share / (given[1] - given[0])))
