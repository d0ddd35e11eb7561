"""Sources: a module for each layout of a drop turns an address into image records and bytes.

csdn.ingest.sync opens a source to inspect a drop, csdn.ingest.listing to list its images, and
csdn.ingest.pack to read them.
"""

from __future__ import annotations

from typing import Protocol

from csdn.data.catalog import ImageRecord
from csdn.runtime.errors import UserError

LAYOUTS = ("builtin", "cameras", "sysu", "regdb", "llcm")


class Source(Protocol):
    """One drop, as the module of its layout reads it. Nothing is listed or read before a method is called."""

    refused: list[tuple[str, str]]  # (path, reason) of files that cannot be images of this drop
    ignored: list[str]  # files that are not images of the drop
    notes: list[str]  # messages to the user about how the drop was read
    complete: bool  # all files of the drop have arrived

    def listing(self) -> list[ImageRecord]:
        """Every image, sorted by path; sets the attributes above. Raises UserError."""
        ...

    def read(self, record: ImageRecord) -> bytes:
        """The bytes of an image. Raises BadImage if the image is bad, OSError if reading fails."""
        ...


def open_source(address: str, layout: str) -> Source:
    """The source of a drop; only the module of its layout is imported, so that worker processes start
    fast.
    """
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
