"""What a file is by its name: an image, one of a kind that is not taken, or no image."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from pathlib import PurePosixPath

from csdn.data.images import EXTENSIONS, extension_of

# Pictures and films that cameras write; what csdn.data.images takes is not asked for here.
_OTHER_IMAGES = {
    *("apng", "avif", "dib", "gif", "heic", "heif", "hif"),
    *("jfif", "jpe", "svg", "tga", "tif", "tiff", "webp"),
    *("j2c", "j2k", "jp2", "jpx", "jxl", "jxr", "mpo", "pbm"),
    *("pcx", "pgm", "pnm", "ppm", "psd", "xbm", "xpm"),
    *("arw", "cr2", "cr3", "dng", "nef", "orf", "raf", "raw", "rw2", "y16", "yuv"),  # as the sensor saw it
    *("dcm", "exr", "fff", "hdr", "npy", "npz", "pfm", "seq"),  # of thermal cameras, among others
    *("avi", "h264", "h265", "m4v", "mj2", "mjpeg", "mjpg"),
    *("mkv", "mov", "mp4", "mpeg", "mpg", "webm", "wmv"),
}


class Kind(Enum):
    IMAGE = auto()
    OTHER_IMAGE = auto()  # of a kind that is not taken: never left out in silence
    NO_IMAGE = auto()


def kind_of(path: str) -> Kind:
    """
    >>> kind_of("a.JPG"), kind_of("a.heic"), kind_of("notes.txt")
    (<Kind.IMAGE: 1>, <Kind.OTHER_IMAGE: 2>, <Kind.NO_IMAGE: 3>)
    """
    if extension_of(path):
        return Kind.IMAGE
    return Kind.OTHER_IMAGE if _ending(path) in _OTHER_IMAGES else Kind.NO_IMAGE


def not_taken(path: str) -> str:
    """The reason for which a file of another kind is refused.

    >>> not_taken("visible/gate/Ana/0.HEIC")
    '.heic files are not taken'
    """
    ending = _ending(path)
    return f".{ending} files are not taken" if ending else "files without an extension are not taken"


def taken_kinds() -> str:
    """The endings that images have, as in ".jpg, .png or .bmp"."""
    *first, last = (f".{extension}" for extension in EXTENSIONS)
    return f"{', '.join(first)} or {last}"


def kinds_in_words(paths: Iterable[str]) -> list[tuple[str, str]]:
    """(path, its ending) of files, as csdn.data.refusals counts them."""
    return [(path, f".{_ending(path)}" if _ending(path) else "no extension") for path in paths]


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix[1:].lower()
