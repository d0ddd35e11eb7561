"""Grey images of 16 bits from thermal cameras: how much contrast 8 bits keep, and a range that keeps more.

The values of a thermal camera fill a small part of 0..65535, so the high byte keeps few grey levels of them.
`ingest.grey16_range` gives a camera the range that becomes 0..255; csdn.ingest.pack stores its images as PNGs
of 8 bits. csdn.ingest.counts warns of cameras that keep few grey levels.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from csdn.data.labels import canonical_label

Range = Sequence[int]  # low, high
Facts = Mapping[str, int]  # of a camera: images, low, high, span

FULL: Range = (0, 65535)
FEW_LEVELS = 64  # of 256; fewer cause a warning
OUTLIERS = 0.1  # percent of the darkest and of the brightest pixels of an image that are ignored
ODD_IMAGES = 1  # percent of the darkest and of the brightest images of a camera that are ignored


def range_of(camera: str, ranges: Mapping[str, Range]) -> Range | None:
    """The range that `ingest.grey16_range` gives a camera; None where it gives none."""
    wanted = canonical_label(camera)
    return next((given for name, given in ranges.items() if canonical_label(name) == wanted), ranges.get("*"))


def png_of_range(values: np.ndarray, low: int, high: int, source: str) -> bytes:
    """uint16 [height, width] -> a PNG of 8 bits in which `low` is black and `high` white.

    It contains the hash of its source, so that two images with the same 8 bits stay different files. It is
    not compressed, because the bytes must not depend on the version of zlib.
    """
    above = np.clip(values, low, high).astype(np.uint32) - low
    grey = ((255 * above + (high - low) // 2) // (high - low)).astype(np.uint8)
    about = PngInfo()
    about.add_text("Source", f"sha256 {source}")
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG", compress_level=0, pnginfo=about)
    return buffer.getvalue()


def extremes(values: np.ndarray) -> tuple[int, int]:
    """The darkest and the brightest value of an image, without its outliers."""
    low, high = np.percentile(values, (OUTLIERS, 100 - OUTLIERS), method="nearest")
    return int(low), int(high)


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
