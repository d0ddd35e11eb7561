"""Where drops of images come from: a layout's module turns an address into records and bytes."""

from __future__ import annotations

from typing import Protocol

from csdn.data.catalog import ImageRecord
from csdn.runtime.errors import UserError

LAYOUTS = ("builtin", "cameras", "sysu", "regdb", "llcm")


class Source(Protocol):
    """One drop as its layout's module sees it; nothing is listed or read before it is asked for."""

    refused: list[tuple[str, str]]  # (path, reason) of what cannot be an image of this drop
    ignored: list[str]  # files that are no images of the drop
    notes: list[str]  # what a person should know of how the drop was read
    complete: bool  # nothing is still being written to it

    def listing(self) -> list[ImageRecord]:
        """Every image, sorted by path; sets the attributes above. Raises UserError."""
        ...

    def read(self, record: ImageRecord) -> bytes:
        """The bytes of an image. Raises BadImage where the image is at fault, OSError where reading is."""
        ...


def open_source(address: str, layout: str) -> Source:
    """The source of a drop; only the module of its layout is imported: worker processes start often."""
    if layout == "builtin":
        from csdn.ingest.sources.synthetic import BuiltinSource

        return BuiltinSource(address)
    if layout == "cameras":
        from csdn.ingest.sources.cameras import CameraSource

        return CameraSource(address)
    if layout == "sysu":
        from csdn.ingest.sources.sysu import SysuSource

        return SysuSource(address)
    if layout == "regdb":
        from csdn.ingest.sources.regdb import RegdbSource

        return RegdbSource(address)
    if layout == "llcm":
        from csdn.ingest.sources.llcm import LlcmSource

        return LlcmSource(address)
    raise UserError(f"layout {layout!r} is unknown; there are: {', '.join(LAYOUTS)}")
