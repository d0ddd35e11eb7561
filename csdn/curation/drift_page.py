"""The comparison of a drop as lines for a terminal, and as one offline page with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from csdn.curation.drift import Drift
from csdn.data.outputs import refused_in_words
from csdn.evaluation.drift import FEATURES, CameraDrift
from csdn.evaluation.two_sample import ALPHA, STATISTICS
from csdn.ingest.ledger import SHORT
from csdn.runtime.files import atomic_write
from csdn.runtime.sanitize import escape_control_chars
from csdn.search.images import GalleryImage
from csdn.search.results import picture


def lines(drift: Drift) -> list[str]:
    """A line for the drop and one for each camera, those with an alarm marked."""
    found = [f"{drift.drop}: drift in {len(drift.alarms)} of {len(drift.cameras)} cameras"]
    found += [f"{'!' if one.alarm else ' '} {one.view}: {one.verdict}" for one in drift.cameras]
    if drift.refused:
        found.append(f"left out: {refused_in_words(drift.refused)}")
    return [escape_control_chars(line) for line in found]


def write_page(drift: Drift, path: Path) -> None:
    """One HTML file with all pictures in it; it loads nothing from elsewhere."""
    environment = Environment(
        loader=PackageLoader("csdn.curation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("drift.html.j2").render(
        drift=drift,
        drop=drift.drop.id[:SHORT],
        columns=[*STATISTICS, FEATURES],
        meanings=STATISTICS,
        alpha=ALPHA,
        rows=[(camera, {shift.statistic: shift for shift in camera.shifts}) for camera in drift.cameras],
        shown=[_shown(camera) for camera in drift.alarms],
        left_out=refused_in_words(drift.refused) if drift.refused else "",
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _shown(camera: CameraDrift) -> dict[str, Any]:
    return {
        "camera": camera,
        "first": camera.alarms[0].statistic if camera.alarms else "",
        "moved": [(image, _picture(image)) for image in camera.moved],
        "typical": [(image, _picture(image)) for image in camera.typical],
    }


def _picture(image: GalleryImage) -> Markup | None:
    return picture(lambda _: image.read(), image.source)
