"""Decoding: the bytes of an image file become RGB pixels, by one rule for all formats (docs/images.md).

Ingest checks with `probe` that an image decodes; csdn.data.batch decodes it for the network, and
csdn.data.augment resizes it.

* The extension decides which decoder reads the file (EXTENSIONS). A file with other content is bad.
* An image is bad if its decoder reports any problem (truncated, damaged). No decoder repairs silently.
* A file holds one image. Animated PNGs are the exception: their first frame is used.
* The EXIF orientation is applied.
* 16 bits become 8 by keeping the high byte, so the full range is kept and no contrast is stretched. `grey16`
  returns the 16 bits.
* Grey and palette images become three channels. Transparent pixels are composited on black.
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

# As in file names and shards. The code of an extension in an array is its position in this tuple.
EXTENSIONS = ("jpg", "png", "bmp", "tif", "webp", "avif")
_SYNONYMS = {"jpeg": "jpg", "tiff": "tif"}
_MAGIC = {
    "jpg": rb"\xff\xd8",
    "png": rb"\x89PNG\r\n\x1a\n",
    "bmp": rb"BM",
    "tif": rb"II[*+]\0|MM\0[*+]",
    "webp": rb"RIFF....WEBP",
    "avif": rb"....ftyp(avif|avis|mif1|msf1)",
}
_PILLOW_FORMAT = {"png": "PNG", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP", "avif": "AVIF"}
_PILLOW_FEATURE = {"tif": "libtiff", "webp": "webp", "avif": "avif"}  # not in every build of Pillow
# Compressions of TIFF: none, LZW, Deflate (two numbers), PackBits. libtiff repairs the others silently.
_DEFLATE = (8, 32946)
_TIFF_COMPRESSIONS = (1, 5, *_DEFLATE, 32773)
_TIFF_COLOURS = (0, 1, 2, 3, 5)  # white or black is zero, RGB, palette, CMYK


class BadImage(Exception):
    """An image to be quarantined; `reason` is one of few short phrases, so that reasons can be counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def extension_of(path: str) -> str | None:
    """The one of EXTENSIONS that a file's name has; None where it has another, or none."""
    ending = PurePosixPath(path).suffix[1:].lower()
    ending = _SYNONYMS.get(ending, ending)
    return ending if ending in EXTENSIONS else None


def decode(data: bytes, extension: str, max_pixels: int | None = None) -> np.ndarray:
    """Pixels, uint8 [height, width, 3], by the rule above; raises BadImage.

    An image whose header announces more than `max_pixels`, if given, is refused before it is decoded.
    """
    with _bad_images():
        _check_kind(data, extension)
        if max_pixels is not None:
            _check_size(data, extension, max_pixels)
        if extension == "jpg":
            return _upright(_decode_jpeg(data), _jpeg_orientation(data))
        return _decode_with_pillow(data, extension)


def thumbnail(data: bytes, extension: str, height: int, width: int) -> bytes:
    """An image file as a JPEG of at most height x width pixels, for pages; raises BadImage."""
    image = Image.fromarray(decode(data, extension))
    scale = min(1, height / image.height, width / image.width)
    if scale < 1:
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, subsampling=0)
    return buffer.getvalue()


def probe(data: bytes, extension: str, max_pixels: int) -> tuple[int, int]:
    """Check that an image decodes; returns (height, width) as decoded. Raises BadImage.

    An image whose header announces more than `max_pixels` is refused before it is decoded.
    """
    with _bad_images():
        _check_kind(data, extension)
        _check_size(data, extension, max_pixels)
        if extension == "jpg":
            # Decoding to grey checks every bit of the stream too, in two thirds of the time.
            height, width = simplejpeg.decode_jpeg(data, colorspace="GRAY").shape[:2]
            return (width, height) if _jpeg_orientation(data) >= 5 else (height, width)
        return _decode_with_pillow(data, extension).shape[:2]


def grey16(data: bytes, extension: str) -> np.ndarray | None:
    """The values of a grey image of 16 bits (PNG, TIFF), uint16 [height, width]; None for any other image.

    The value that the file declares transparent becomes 0. Raises BadImage.
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


def _check_size(data: bytes, extension: str, max_pixels: int) -> None:
    if _header_pixels(data, extension) > max_pixels:
        raise BadImage("too large")


def _header_pixels(data: bytes, extension: str) -> int:
    """How many pixels the decoder will allocate, according to the header."""
    if extension == "jpg":
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        return height * width
    if extension == "tif":
        return _tiff_pixels(_tiff_tags(data))
    image = _open(data, extension)
    return image.width * image.height


def _decode_jpeg(data: bytes) -> np.ndarray:
    """The pixels as stored, uint8 [height, width, 3]; simplejpeg makes each warning of libjpeg-turbo an
    error.
    """
    if simplejpeg.decode_jpeg_header(data)[2] not in ("CMYK", "YCCK"):
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    inks = 255 - simplejpeg.decode_jpeg(data, colorspace="CMYK")  # Adobe stores them inverted
    return np.asarray(Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()).convert("RGB"))


def _jpeg_orientation(data: bytes) -> int:
    if b"Exif\0\0" not in data:
        return 1
    try:
        return _orientation(Image.open(io.BytesIO(data), formats=["JPEG"]))
    except (OSError, ValueError, SyntaxError):
        return 1  # libjpeg reads the file, but Pillow cannot find its EXIF


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (as stored) where EXIF is not readable, as image viewers assume."""
    for key in ("xmp", "XML:com.adobe.xmp"):  # getexif would read these too
        image.info.pop(key, None)
    try:
        orientation = image.getexif().get(Tag.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # cameras write all kinds of invalid EXIF, and Pillow raises all kinds of exceptions
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [height, width, ...] as stored, turned according to the EXIF orientation."""
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
    """The image with its pixels as stored (a TIFF's: upright), checked as far as the format allows."""
    if extension == "tif":
        _check_deflate(data)
    image = _open(data, extension)
    if extension != "png" and getattr(image, "is_animated", False):
        raise BadImage("more than one image in the file")
    if extension == "png":
        image.verify()  # checks every chunk, while load() does not check those of the pixels
        image = _open(data, extension)
    image.load()
    return image


def _open(data: bytes, extension: str) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=[_PILLOW_FORMAT[extension]])


def _tiff_tags(data: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    """The tags of a TIFF's first image."""
    header = 16 if data[2:4] in (b"+\0", b"\0+") else 8  # BigTIFF, TIFF
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:header])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags


def _check_tiff_kind(tags: TiffImagePlugin.ImageFileDirectory_v2) -> None:
    """Refuse what Pillow does not read, reads wrongly, or repairs silently."""
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
    """How many pixels the decoder allocates: those of the image, or of a tile, which can be larger."""
    tile = tags.get(Tag.TileWidth, 0) * tags.get(Tag.TileLength, 0)
    return max(tags[Tag.ImageWidth] * tags[Tag.ImageLength], tile)


def _check_deflate(data: bytes) -> None:
    """Check the checksums of a TIFF's Deflate streams, which libtiff does not read."""
    tags = _tiff_tags(data)
    if tags.get(Tag.Compression, 1) not in _DEFLATE:
        return
    tiled = Tag.TileOffsets in tags
    offsets = tags[Tag.TileOffsets if tiled else Tag.StripOffsets]
    sizes = tags[Tag.TileByteCounts if tiled else Tag.StripByteCounts]
    for offset, size in zip(offsets, sizes, strict=True):
        stream = zlib.decompressobj()
        # The limit is the size of the largest pixels: four values of 16 bits.
        stream.decompress(data[offset : offset + size], 8 * _tiff_pixels(tags) + 1)
        if not stream.eof:
            raise BadImage("truncated")


def _has_16_bits(image: Image.Image) -> bool:
    """Whether it is grey with 16 bits a pixel."""
    return image.mode.startswith("I;16")


def _values_of_16_bits(image: Image.Image) -> np.ndarray:
    """uint16 [height, width], black is 0; the value that the file declares transparent becomes 0."""
    values = np.array(image).astype(np.uint16)
    transparent = image.info.get("transparency")
    if transparent is not None:
        values[values == transparent] = 0
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        values <<= 16 - image.tag_v2[Tag.BitsPerSample][0]  # of 12 bits
        if image.tag_v2.get(Tag.PhotometricInterpretation, 0) == 0:
            values = 65535 - values  # white is zero
    return values


@contextmanager
def _bad_images() -> Iterator[None]:
    """Turn any exception of a decoder into BadImage: hostile bytes can cause every kind."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow warns of large images and odd EXIF; both are handled here
            yield
    except (BadImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadImage("too large") from error
    except Exception as error:
        message = str(error).lower()
        truncated = "truncated" in message or "premature end" in message
        raise BadImage("truncated" if truncated else "cannot be decoded") from error
