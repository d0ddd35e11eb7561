"""Bytes of an image file -> RGB pixels, by one rule for everything that cameras write (docs/images.md).

* The extension says which decoder reads the file: `jpg` (also `jpeg`), `png`, `bmp`; other content is bad.
* EXIF rotation is applied. Only the first frame of an animation is used.
* 16 bits become 8 by keeping the high byte: the full range is kept, no contrast is stretched.
* Grey and palette become three channels; what is transparent becomes black, in part as far as it is.
* Colours stay as they are stored: no ICC profile, no gamma.
* Whatever a strict decoder complains of (truncated, damaged) is bad: nothing is guessed.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

# As they stand in file names and shards; codes in arrays are positions in this tuple.
EXTENSIONS = ("jpg", "png", "bmp")
_PILLOW_FORMAT = {"jpg": "JPEG", "png": "PNG", "bmp": "BMP"}
_MAGIC = {"jpg": b"\xff\xd8", "png": b"\x89PNG\r\n\x1a\n", "bmp": b"BM"}
_SIMPLE_COLOURS = ("Gray", "YCbCr", "RGB")


class BadImage(Exception):
    """An image that is quarantined; `reason` is one of few short phrases, so that reasons can be counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def extension_of(path: str) -> str | None:
    """`jpg`, `png` or `bmp` by the file's name; None where the name is not an image's."""
    ending = PurePosixPath(path).suffix[1:].lower()
    ending = "jpg" if ending == "jpeg" else ending
    return ending if ending in EXTENSIONS else None


def decode(data: bytes, extension: str) -> np.ndarray:
    """Pixels, uint8 [height, width, 3], by the rule above; raises BadImage."""
    _check_kind(data, extension)
    with _bad_images():
        if _is_plain_jpeg(data, extension):
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        return _decode_with_pillow(data, extension)


def probe(data: bytes, extension: str, max_pixels: int) -> tuple[int, int]:
    """Prove that an image decodes; returns (height, width) as decoded.

    The header is believed before any pixel is: an image of more than `max_pixels` is refused undecoded.
    Raises BadImage.
    """
    _check_kind(data, extension)
    with _bad_images():
        height, width = _header_size(data, extension)
        if height * width > max_pixels:
            raise BadImage("too large")
        if _is_plain_jpeg(data, extension):
            # Grey reads and checks every bit of the stream too, and leaves out a third of the work.
            return simplejpeg.decode_jpeg(data, colorspace="GRAY").shape[:2]
        return _decode_with_pillow(data, extension).shape[:2]


def _check_kind(data: bytes, extension: str) -> None:
    if not data:
        raise BadImage("empty file")
    if not data.startswith(_MAGIC[extension]):
        raise BadImage(f"not a {extension} image")


def _header_size(data: bytes, extension: str) -> tuple[int, int]:
    if extension == "jpg":
        return simplejpeg.decode_jpeg_header(data)[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is asked next
        return _open(data, extension).size[::-1]


def _is_plain_jpeg(data: bytes, extension: str) -> bool:
    """Whether the fast decoder alone gives what the rule says: nothing to rotate, no CMYK."""
    if extension != "jpg" or b"Exif\0\0" in data:
        return False
    return simplejpeg.decode_jpeg_header(data)[2] in _SIMPLE_COLOURS


def _decode_with_pillow(data: bytes, extension: str) -> np.ndarray:
    with _open(data, extension) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):
        return _high_bytes(np.asarray(image), image.info.get("transparency"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.array(image.convert("RGB"))


def _high_bytes(grey: np.ndarray, transparent: int | None) -> np.ndarray:
    """uint16 [H, W] -> uint8 [H, W, 3]; the one value that the file calls transparent becomes black."""
    kept = (grey >> 8).astype(np.uint8)
    if transparent is not None:
        kept[grey == transparent] = 0
    return np.repeat(kept[:, :, None], 3, axis=2)


def _open(data: bytes, extension: str) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=[_PILLOW_FORMAT[extension]])


@contextmanager
def _bad_images() -> Iterator[None]:
    """Turns whatever a decoder raises into BadImage: on hostile bytes that can be any exception."""
    try:
        yield
    except (BadImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadImage("too large") from error
    except Exception as error:
        message = str(error).lower()
        truncated = "truncated" in message or "premature end" in message
        raise BadImage("truncated" if truncated else "cannot be decoded") from error
