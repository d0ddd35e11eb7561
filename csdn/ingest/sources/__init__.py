"""Sources: a module for each layout of a drop turns an address into image records and bytes.

csdn.ingest.sync opens a source to inspect a drop, csdn.ingest.run to list its images, and csdn.ingest.pack to
read them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from csdn.data.catalog import ImageRecord
from csdn.ingest.sources.cameras import CameraSource
from csdn.ingest.sources.llcm import LlcmSource
from csdn.ingest.sources.regdb import RegdbSource
from csdn.ingest.sources.sysu import SysuSource
from csdn.ingest.sources.tree import FileEntry
from csdn.runtime.errors import UserError
from csdn.synthetic.sets import BuiltinSource


class Source(Protocol):
    """One drop, as the module of its layout reads it. Nothing is listed or read before a method is called."""

    refused: list[tuple[str, str]]  # (path, reason) of files that cannot be images of this drop
    ignored: list[str]  # files that are not images of the drop
    notes: list[str]  # messages to the user about how the drop was read
    complete: bool  # all files of the drop have arrived

    @property
    def marker(self) -> FileEntry | None:
        """The file that completes the drop, if there is one."""
        ...

    def listing(self) -> list[ImageRecord]:
        """Every image, sorted by path; sets the attributes above. Raises UserError."""
        ...

    def read(self, record: ImageRecord) -> bytes:
        """The bytes of an image. Raises BadImage if the image is bad, OSError if reading fails."""
        ...


_SOURCES: dict[str, Callable[[str], Source]] = {
    "builtin": BuiltinSource,
    "cameras": CameraSource,
    "sysu": SysuSource,
    "regdb": RegdbSource,
    "llcm": LlcmSource,
}
LAYOUTS = tuple(_SOURCES)


def open_source(address: str, layout: str) -> Source:
    """The source of the drop at an address; raises UserError for an unknown layout."""
    if layout not in _SOURCES:
        raise UserError(f"layout {layout!r} is unknown; there are: {', '.join(LAYOUTS)}")
    return _SOURCES[layout](address)
