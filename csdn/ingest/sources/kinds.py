"""What the name of a file says: an image, an image or film of an unsupported kind, or no image."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from pathlib import PurePosixPath

from csdn.data.images import EXTENSIONS, extension_of

# Images and films that cameras write, of kinds that csdn.data.images does not decode.
_OTHER_IMAGES = {
    extension
    for kind in (
        "apng avif dib gif heic heif hif jfif jpe svg tga tif tiff webp",
        "j2c j2k jp2 jpx jxl jxr mpo pbm pcx pgm pnm ppm psd xbm xpm",
        "arw cr2 cr3 dng nef orf raf raw rw2 y16 yuv",  # raw data of the sensor
        "dcm exr fff hdr npy npz pfm seq",  # of thermal cameras, among others
        "avi h264 h265 m4v mj2 mjpeg mjpg mkv mov mp4 mpeg mpg webm wmv",
    )
    for extension in kind.split()
}


class Kind(Enum):
    IMAGE = auto()
    OTHER_IMAGE = auto()  # of an unsupported kind; the user is told of it
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
    """The reason for refusing a file of another kind.

    >>> not_taken("visible/gate/Ana/0.HEIC")
    '.heic files are not taken'
    """
    ending = _ending(path)
    return f".{ending} files are not taken" if ending else "files without an extension are not taken"


def taken_kinds() -> str:
    """The supported extensions, such as ".jpg, .png or .bmp"."""
    *first, last = (f".{extension}" for extension in EXTENSIONS)
    return f"{', '.join(first)} or {last}"


def kinds_in_words(paths: Iterable[str]) -> list[tuple[str, str]]:
    """(path, its extension) of files, for csdn.runtime.sanitize to count."""
    return [(path, f".{_ending(path)}" if _ending(path) else "no extension") for path in paths]


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix[1:].lower()
