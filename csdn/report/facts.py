"""What the figures rest on: the data, what was refused of it, parameters and versions."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from csdn.data.refusals import in_words
from csdn.params import Params, leaves
from csdn.report.words import bdi

QUARANTINE_ROWS = 50
CAMERAS = 50  # of each modality
PACKAGES = ("csdn", "torch", "open_clip_torch", "numpy", "pyarrow", "simplejpeg", "pillow")


def data_rows(ingest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """People and images of the two sides."""
    return [
        {"side": side, "people": ingest["people"][side], **ingest["images"][side]}
        for side in ("train", "test")
    ]


def data_remarks(ingest: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the data beyond its size."""
    people, drops = ingest["people"], ingest["drops"]
    remarks = [f"{drops['used']} drop{'s' * (drops['used'] != 1)} of images in use."]
    if people["waiting"]:
        remarks.append(f"{people['waiting']} people wait for images of the other modality and are not used.")
    if ingest["duplicates"]:
        remarks.append(f"{ingest['duplicates']} images came more than once and are used once.")
    warnings = ingest["unlike_published"] + ingest["labels"] + ingest["few_grey_levels"]
    remarks += [f"Warning: {warning}." for warning in warnings]
    for held in drops["held"]:
        remarks.append(
            Markup("Held and left out: {}, {} of {} images are bad: {}.").format(
                bdi(held["address"]),
                held["bad"],
                held["images"],
                bdi(in_words(held["reasons"], held["examples"])),
            )
        )
    for drop in drops["left_out"]:
        remarks.append(
            Markup("Left out: {}, {}: {}").format(bdi(drop["address"]), drop["status"], bdi(drop["reason"]))
        )
    return remarks


def camera_counts(ingest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Images by modality and camera, of the CAMERAS that have most; `share` of the largest, percent."""
    largest = max((n for cameras in ingest["cameras"].values() for n in cameras.values()), default=1)
    rows = []
    for modality in ("visible", "infrared"):
        most = Counter(ingest["cameras"][modality]).most_common(CAMERAS)
        rows += [
            {"modality": modality, "camera": camera, "images": n, "share": round(100 * n / largest, 2)}
            for camera, n in sorted(most)
        ]
    return rows


def more_cameras(ingest: Mapping[str, Any]) -> int:
    """Cameras that `camera_counts` leaves out."""
    return sum(max(0, len(cameras) - CAMERAS) for cameras in ingest["cameras"].values())


def quarantine(table: pa.Table) -> dict[str, Any]:
    """The first rows of what was refused, and how many more there are."""
    shown = table.slice(0, QUARANTINE_ROWS).to_pylist()
    return {"rows": shown, "total": table.num_rows, "more": table.num_rows - len(shown)}


def parameter_groups(params: Params) -> list[tuple[str, list[tuple[str, str]]]]:
    """(section, [(key, value)]) of what decides the result in params.yaml, nested keys joined by dots."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for key, value in leaves(params.model_dump(exclude={"scaling"})):
        section, _, rest = key.partition(".")
        groups.setdefault(section, []).append((rest or section, "" if value is None else str(value)))
    return list(groups.items())


def versions() -> list[tuple[str, str]]:
    """Python and the packages that the result can depend on."""
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            found.append((package, "not installed as a package"))
    return found
