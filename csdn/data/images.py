"""Bytes of an image file -> RGB pixels, by one rule for everything that cameras write (docs/images.md).

* The extension says which decoder reads the file (EXTENSIONS); other content is bad.
* Whatever the decoder complains of (truncated, damaged) is bad: no decoder that repairs in silence is used.
* A file is one image. Of an animated PNG alone the first frame is used.
* EXIF's orientation is applied.
* 16 bits become 8 by keeping the high byte: the full range is kept, no contrast is stretched. `grey16` gives
  the 16 bits.
* Grey and palette become three channels; what is transparent becomes black, in part as far as it is.
* Colours stay as they are stored: no ICC profile, no gamma.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

import numpy as np
import simplejpeg
from PIL import Image, TiffImagePlugin, features
from PIL.ExifTags import Base as Tag

# As they stand in file names and shards; codes in arrays are positions in this tuple.
EXTENSIONS = ("jpg", "png", "bmp", "tif", "webp", "avif")
_OTHER_ENDINGS = {"jpeg": "jpg", "tiff": "tif"}
_MAGIC = {
    "jpg": rb"\xff\xd8",
    "png": rb"\x89PNG\r\n\x1a\n",
    "bmp": rb"BM",
    "tif": rb"II[*+]\0|MM\0[*+]",
    "webp": rb"RIFF....WEBP",
    "avif": rb"....ftyp(avif|avis|mif1|msf1)",
}
_PILLOW_FORMAT = {"png": "PNG", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP", "avif": "AVIF"}
_PILLOW_FEATURE = {"tif": "libtiff", "webp": "webp", "avif": "avif"}  # which not every build of Pillow has
# Compressions of TIFF: none, LZW, Deflate (two numbers), PackBits. libtiff repairs the others in silence.
_DEFLATE = (8, 32946)
_TIFF_COMPRESSIONS = (1, 5, *_DEFLATE, 32773)
_TIFF_COLOURS = (0, 1, 2, 3, 5)  # white or black is zero, RGB, palette, CMYK


class BadImage(Exception):
    """An image that is quarantined; `reason` is one of few short phrases, so that reasons can be counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def extension_of(path: str) -> str | None:
    """One of EXTENSIONS by the file's name; None where the name is not an image's."""
    ending = PurePosixPath(path).suffix[1:].lower()
    ending = _OTHER_ENDINGS.get(ending, ending)
    return ending if ending in EXTENSIONS else None


def decode(data: bytes, extension: str) -> np.ndarray:
    """Pixels, uint8 [height, width, 3], by the rule above; raises BadImage."""
    with _bad_images():
        _check_kind(data, extension)
        if extension == "jpg":
            return _upright(_decode_jpeg(data), _jpeg_orientation(data))
        return _decode_with_pillow(data, extension)


def probe(data: bytes, extension: str, max_pixels: int) -> tuple[int, int]:
    """Prove that an image decodes; returns (height, width) as decoded.

    The header is believed before any pixel is: an image of more than `max_pixels` is refused undecoded.
    Raises BadImage.
    """
    with _bad_images():
        _check_kind(data, extension)
        if _header_pixels(data, extension) > max_pixels:
            raise BadImage("too large")
        if extension == "jpg":
            # Grey reads and checks every bit of the stream too, and leaves out a third of the work.
            height, width = simplejpeg.decode_jpeg(data, colorspace="GRAY").shape[:2]
            return (width, height) if _jpeg_orientation(data) >= 5 else (height, width)
        return _decode_with_pillow(data, extension).shape[:2]


def grey16(data: bytes, extension: str) -> np.ndarray | None:
    """The values of a grey image of 16 bits (PNG, TIFF), uint16 [height, width]; None for any other image.

    The one value that the file calls transparent becomes 0. Raises BadImage.
    """
    if extension not in ("png", "tif"):
        return None
    with _bad_images():
        if not _has_16_bits(_open(data, extension)):
            return None
        image = _load(data, extension)
        return _upright(_values_of_16_bits(image), _orientation(image))


def _check_kind(data: bytes, extension: str) -> None:
    if not data:
        raise BadImage("empty file")
    if not re.match(_MAGIC[extension], data, re.DOTALL):
        raise BadImage(f"not a {extension} image")
    feature = _PILLOW_FEATURE.get(extension)
    if feature and not features.check(feature):
        raise BadImage(f"{extension}: this Pillow is built without {feature}")
    if extension == "tif":
        _check_tiff_kind(_tiff_tags(data))


def _header_pixels(data: bytes, extension: str) -> int:
    """How many pixels the decoder will allocate, by the header."""
    if extension == "jpg":
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        return height * width
    if extension == "tif":
        return _tiff_pixels(_tiff_tags(data))
    image = _open(data, extension)
    return image.width * image.height


def _decode_jpeg(data: bytes) -> np.ndarray:
    """The pixels as stored, uint8 [height, width, 3]: libjpeg-turbo, each of whose warnings is an error."""
    if simplejpeg.decode_jpeg_header(data)[2] not in ("CMYK", "YCCK"):
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    inks = 255 - simplejpeg.decode_jpeg(data, colorspace="CMYK")  # stored inverted, as Adobe does
    return np.asarray(Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()).convert("RGB"))


def _jpeg_orientation(data: bytes) -> int:
    if b"Exif\0\0" not in data:
        return 1
    try:
        return _orientation(Image.open(io.BytesIO(data), formats=["JPEG"]))
    except (OSError, ValueError, SyntaxError):
        return 1  # libjpeg reads the file, Pillow does not find its way to the EXIF


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 (as stored) where EXIF is not readable, as every viewer takes it."""
    for key in ("xmp", "XML:com.adobe.xmp"):  # getexif looks there too
        image.info.pop(key, None)
    try:
        orientation = image.getexif().get(Tag.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # cameras write every kind of mistake, and Pillow raises whatever it meets
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [height, width, ...] as stored, turned as EXIF's orientation says."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _decode_with_pillow(data: bytes, extension: str) -> np.ndarray:
    image = _load(data, extension)
    orientation = _orientation(image)
    if _has_16_bits(image):
        grey = (_values_of_16_bits(image) >> 8).astype(np.uint8)
        return _upright(np.repeat(grey[:, :, None], 3, axis=2), orientation)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return _upright(np.array(image.convert("RGB")), orientation)


def _load(data: bytes, extension: str) -> Image.Image:
    """The image with its pixels as stored (a TIFF's: upright), proved as far as the format allows."""
    if extension == "tif":
        _check_deflate(data)
    image = _open(data, extension)
    if extension != "png" and getattr(image, "is_animated", False):
        raise BadImage("more than one image in the file")
    if extension == "png":
        image.verify()  # the checksum of every chunk: loading leaves out those of the pixels
        image = _open(data, extension)
    image.load()
    return image


def _open(data: bytes, extension: str) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=[_PILLOW_FORMAT[extension]])


def _tiff_tags(data: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    """The tags of a TIFF's first image."""
    header = 16 if data[2:4] in (b"+\0", b"\0+") else 8  # of 64 bits, of 32
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:header])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags


def _check_tiff_kind(tags: TiffImagePlugin.ImageFileDirectory_v2) -> None:
    """Refuse what Pillow does not read, reads wrongly, or repairs in silence."""
    formats, bits = tags.get(Tag.SampleFormat, (1,)), tags.get(Tag.BitsPerSample, (1,))
    compression, colours = tags.get(Tag.Compression, 1), tags.get(Tag.PhotometricInterpretation, 0)
    if 3 in formats:
        raise BadImage("TIFF of floats")
    if 2 in formats or max(bits) > 16:
        raise BadImage("TIFF of signed values, or of more than 16 bits")
    if compression not in _TIFF_COMPRESSIONS:
        raise BadImage(f"TIFF of compression {compression}")
    if colours not in _TIFF_COLOURS:
        raise BadImage(f"TIFF of colour space {colours}")


def _tiff_pixels(tags: TiffImagePlugin.ImageFileDirectory_v2) -> int:
    """How many pixels the decoder allocates: of the image, or of a tile, which can be larger."""
    tile = tags.get(Tag.TileWidth, 0) * tags.get(Tag.TileLength, 0)
    return max(tags[Tag.ImageWidth] * tags[Tag.ImageLength], tile)


def _check_deflate(data: bytes) -> None:
    """Check the checksums of a TIFF's Deflate streams: libtiff does not read up to them."""
    tags = _tiff_tags(data)
    if tags.get(Tag.Compression, 1) not in _DEFLATE:
        return
    tiled = Tag.TileOffsets in tags
    offsets = tags[Tag.TileOffsets if tiled else Tag.StripOffsets]
    sizes = tags[Tag.TileByteCounts if tiled else Tag.StripByteCounts]
    for offset, size in zip(offsets, sizes, strict=True):
        stream = zlib.decompressobj()
        # Not more than the largest pixels take: four values of 16 bits.
        stream.decompress(data[offset : offset + size], 8 * _tiff_pixels(tags) + 1)
        if not stream.eof:
            raise BadImage("truncated")


def _has_16_bits(image: Image.Image) -> bool:
    """Whether it is grey with 16 bits a pixel."""
    return image.mode.startswith("I;16")


def _values_of_16_bits(image: Image.Image) -> np.ndarray:
    """uint16 [height, width], black is 0; the one value that the file calls transparent becomes 0."""
    values = np.array(image).astype(np.uint16)
    transparent = image.info.get("transparency")
    if transparent is not None:
        values[values == transparent] = 0
    if image.format == "TIFF":
        values <<= 16 - image.tag_v2[Tag.BitsPerSample][0]  # 12 bits
        if image.tag_v2.get(Tag.PhotometricInterpretation, 0) == 0:
            values = 65535 - values  # white is zero
    return values


@contextmanager
def _bad_images() -> Iterator[None]:
    """Turns whatever a decoder raises into BadImage: on hostile bytes that can be any exception."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow: large images and odd EXIF, which are judged here
            yield
    except (BadImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadImage("too large") from error
    except Exception as error:
        message = str(error).lower()
        truncated = "truncated" in message or "premature end" in message
        raise BadImage("truncated" if truncated else "cannot be decoded") from error
