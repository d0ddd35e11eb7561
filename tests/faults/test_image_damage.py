"""Damage is refused on every path that decodes, as far as a format shows it; what is whole comes upright."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import simplejpeg
from make_images import UPRIGHT, encoded
from PIL import Image

from csdn.data.images import BadImage, decode, probe

DRAWS = np.random.default_rng(0)
SMOOTH = Image.fromarray(DRAWS.integers(0, 256, (12, 6, 3), dtype=np.uint8)).resize((96, 192))
PHOTO = Image.fromarray(np.asarray(SMOOTH) // 2 + DRAWS.integers(0, 100, (192, 96, 3), dtype=np.uint8))
DEEP = np.asarray(PHOTO)[..., 0].astype(np.uint16) * 256 + np.asarray(PHOTO)[..., 1]

NEW = [("TIFF", "tif"), ("WEBP", "webp"), ("AVIF", "avif")]


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


JPEGS = {
    f"{mode}{', progressive' * progressive}{', EXIF' * bool(orientation)} {orientation or ''}": saved(
        PHOTO.convert(mode),
        "JPEG",
        quality=90,
        progressive=progressive,
        **({"exif": exif_of(orientation)} if orientation else {}),
    )
    for mode in ("RGB", "L", "CMYK")
    for progressive in (False, True)
    for orientation in (0, 1, 6)
}
WITH_CHECKSUMS = {
    "png": saved(PHOTO, "PNG"),
    "png of 16 bits": encoded(DEEP),
    "png with a palette": saved(PHOTO.quantize(64), "PNG"),
    "png with alpha": saved(PHOTO.convert("RGBA"), "PNG"),
    "png not compressed": saved(PHOTO, "PNG", compress_level=0),
    "png with EXIF": saved(PHOTO, "PNG", exif=exif_of(6)),
    "tif": saved(PHOTO, "TIFF", compression="tiff_adobe_deflate"),
    "tif of 16 bits": encoded(DEEP, "TIFF", compression="tiff_adobe_deflate"),
}
WITHOUT_CHECKSUMS = {
    "bmp": saved(PHOTO, "BMP"),
    "tif, raw": saved(PHOTO, "TIFF"),
    "tif, LZW": saved(PHOTO, "TIFF", compression="tiff_lzw"),
    "tif, PackBits": saved(PHOTO, "TIFF", compression="packbits"),
    "webp": saved(PHOTO, "WEBP"),
    "webp, lossless": saved(PHOTO, "WEBP", lossless=True),
    "avif": saved(PHOTO, "AVIF"),
}


def verdict(data: bytes, extension: str) -> np.ndarray | None:
    """The pixels, None where the image is refused; ingest's proof and decoding must agree."""
    try:
        shape = probe(data, extension, 10**6)
    except BadImage:
        with pytest.raises(BadImage):
            decode(data, extension)
        return None
    pixels = decode(data, extension)
    assert pixels.shape == (*shape, 3)
    return pixels


def cuts(data: bytes) -> Iterator[bytes]:
    """The file without its end."""
    for share in np.linspace(0.2, 0.95, 9):
        yield data[: int(share * len(data))]


def tails(data: bytes) -> Iterator[bytes]:
    """Zeroes behind a place in the middle; the marker of the end, two bytes, is there."""
    for share in np.linspace(0.4, 0.8, 9):
        at = int(share * len(data))
        yield data[:at] + bytes(len(data) - at - 2) + data[-2:]


def blocks(data: bytes) -> Iterator[bytes]:
    """Zeroes in place of a block of a disk."""
    for share in np.linspace(0.4, 0.8, 9):
        at = int(share * len(data))
        yield data[:at] + bytes(512) + data[at + 512 :]


def flips(data: bytes) -> Iterator[bytes]:
    """One bit is another."""
    for share in np.linspace(0.4, 0.95, 20):
        at = int(share * len(data))
        yield data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :]


@pytest.mark.parametrize("name", JPEGS)
def test_no_jpeg_that_lost_a_part_is_taken(name):
    data = JPEGS[name]
    assert verdict(data, "jpg") is not None
    assert [verdict(damaged, "jpg") for damaged in (*cuts(data), *tails(data))] == [None] * 18
    if "progressive" not in name:  # its later passes are bits of which any are right
        assert [verdict(damaged, "jpg") for damaged in blocks(data)] == [None] * 9


@pytest.mark.parametrize("name", WITH_CHECKSUMS)
def test_of_a_format_with_checksums_no_damage_is_taken(name):
    data, extension = WITH_CHECKSUMS[name], name.split()[0]
    whole = verdict(data, extension)
    assert whole is not None
    for damaged in (*cuts(data), *tails(data), *blocks(data), *flips(data)):
        found = verdict(damaged, extension)
        assert found is None or np.array_equal(found, whole)


@pytest.mark.parametrize("name", WITHOUT_CHECKSUMS)
def test_of_a_format_without_checksums_no_cut_file_is_taken(name):
    data, extension = WITHOUT_CHECKSUMS[name], name.split(",")[0]
    assert verdict(data, extension) is not None
    assert [verdict(damaged, extension) for damaged in cuts(data)] == [None] * 9


@pytest.mark.parametrize("end", ["IEND", "the last chunk of pixels"])
def test_a_png_without_its_end_is_refused(end):
    data = saved(PHOTO, "PNG")
    assert verdict(data[:-12] if end == "IEND" else data[:-16], "png") is None


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind, extension", [*NEW, ("PNG", "png")])
def test_every_format_comes_upright(kind, extension, orientation):
    stored = np.kron(np.array([[0, 60, 120], [160, 200, 255]], np.uint8), np.ones((16, 16), np.uint8))
    image = Image.fromarray(stored).convert("RGB")
    found = verdict(saved(image, kind, exif=exif_of(orientation)), extension)
    assert found is not None
    expected = UPRIGHT[orientation](np.asarray(image)).astype(int)
    assert found.shape == expected.shape and np.abs(found - expected).max() < 20


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_a_jpeg_of_other_colours_comes_upright(mode, orientation):
    data = saved(PHOTO.convert(mode), "JPEG", exif=exif_of(orientation))
    as_stored = decode(saved(PHOTO.convert(mode), "JPEG"), "jpg")
    np.testing.assert_array_equal(verdict(data, "jpg"), UPRIGHT[orientation](as_stored))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_of_16_bits_comes_upright(compression, orientation):
    stored = np.array([[0x0100, 0x2345, 0x4567], [0x6789, 0x89AB, 0xFFFF]], np.uint16)
    data = encoded(stored, "TIFF", compression=compression, tiffinfo={274: orientation})
    high = np.repeat((stored >> 8).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(verdict(data, "tif"), UPRIGHT[orientation](high))


def test_a_cmyk_jpeg_is_what_pillow_makes_of_it():
    for transform in (0, 2):  # as stored, and as YCCK
        data = bytearray(saved(PHOTO.convert("CMYK"), "JPEG", quality=95))
        data[data.index(b"Adobe") + 11] = transform
        pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert np.abs(verdict(bytes(data), "jpg") - pillow).max() <= 1


# `cjpeg -arithmetic` of a 16x16 grey ramp from left to right; Pillow writes no such JPEG.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBw"
    "YGCAsICQoKCgoKBggLDAsKDAkKCgr/yQALCAAQABABAREA/8wABgAQEAX/2gAIAQEAAD8A/wDswL8xM3GAmm5No4Fk"
    "Phyv6bnonXIg/9k="
)


def test_a_jpeg_coded_arithmetically_is_taken_and_refused_when_cut():
    image = verdict(ARITHMETIC, "jpg")
    assert np.abs(image.astype(int) - np.arange(0, 256, 16)[None, :, None]).max() <= 4
    assert verdict(ARITHMETIC[: len(ARITHMETIC) * 2 // 3], "jpg") is None


def exif_segment(body: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(body) + 8) + b"Exif\0\0" + body


def ifd(*entries: bytes, order: str = "<") -> bytes:
    head = b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"
    return head + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)


TURNED = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)  # orientation 6


@pytest.mark.parametrize(
    "body, turned",
    [
        pytest.param(ifd(TURNED), True, id="orientation alone"),
        pytest.param(ifd(struct.pack(">HHIHH", 0x112, 3, 1, 6, 0), order=">"), True, id="big-endian"),
        pytest.param(
            ifd(TURNED, struct.pack("<HHII", 0x11A, 5, 1, 38)) + struct.pack("<II", 1, 0),
            True,
            id="a resolution of 1/0",
        ),
        pytest.param(
            ifd(TURNED, struct.pack("<HHII", 0x9204, 10, 1, 38)) + struct.pack("<ii", -2, 0),
            True,
            id="an exposure bias of -2/0",
        ),
        pytest.param(
            ifd(TURNED, struct.pack("<HHII", 0x927C, 7, 10**6, 38)), True, id="a note beyond the end"
        ),
        pytest.param(
            ifd(TURNED, struct.pack("<HHII", 0x8769, 4, 1, 9999)), True, id="a table beyond the end"
        ),
        pytest.param(ifd(TURNED, struct.pack("<HHII", 0x10F, 77, 1, 0)), True, id="a type that there is not"),
        pytest.param(ifd(TURNED)[:-4] + b"\x10\x01", True, id="cut behind the orientation"),
        pytest.param(ifd(struct.pack("<HHII", 0x112, 4, 1, 6)), True, id="orientation as a long number"),
        pytest.param(ifd(struct.pack("<HHIHH", 0x112, 3, 1, 9, 0)), False, id="orientation 9"),
        pytest.param(ifd(struct.pack("<HHIHH", 0x112, 3, 1, 0, 0)), False, id="orientation 0"),
        pytest.param(ifd(struct.pack("<HHI4s", 0x112, 2, 2, b"6\0")), False, id="orientation as text"),
        pytest.param(ifd(), False, id="nothing in it"),
        pytest.param(b"", False, id="no byte"),
        pytest.param(bytes(40), False, id="zeroes"),
        pytest.param(b"garbage of a camera", False, id="garbage"),
        pytest.param(b"II*\0\xff\xff\xff\xff", False, id="the table far away"),
    ],
)
def test_a_jpeg_is_turned_as_far_as_its_exif_can_be_read(body, turned):
    plain = saved(PHOTO, "JPEG")
    image = verdict(plain[:2] + exif_segment(body) + plain[2:], "jpg")
    stored = decode(plain, "jpg")
    np.testing.assert_array_equal(image, UPRIGHT[6](stored) if turned else stored)


def test_orientation_counts_in_exif_alone():
    """XMP may have one as well, which no viewer heeds."""
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    plain = decode(saved(PHOTO, "JPEG"), "jpg")
    for exif in ({}, {"exif": exif_of(1)}):
        np.testing.assert_array_equal(verdict(saved(PHOTO, "JPEG", xmp=xmp, **exif), "jpg"), plain)
    assert verdict(saved(PHOTO, "WEBP", xmp=xmp), "webp").shape == (192, 96, 3)


def test_one_path_reads_every_jpeg(monkeypatch):
    """Pillow gives a JPEG's orientation, never its pixels."""
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("Pillow decoded it"))
    for data in JPEGS.values():
        assert simplejpeg.decode_jpeg_header(data)[0] and probe(data, "jpg", 10**6)


def tiff(width: int, height: int, bits: int, strip: bytes, **tags: int) -> bytes:
    """A TIFF of one strip, built by hand: little-endian, one sample a pixel."""
    given = {"compression": 1, "colours": 1, "format": 1, "tile": 0} | tags
    entries = {
        256: width,
        257: height,
        258: bits,
        259: given["compression"],
        262: given["colours"],
        273: 8,
        277: 1,
        278: height,
        279: len(strip),
        339: given["format"],
    }
    if given["tile"]:
        for tag in (273, 278, 279):
            del entries[tag]
        entries |= {322: given["tile"], 323: given["tile"], 324: 8, 325: len(strip)}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(strip))
        + strip
        + struct.pack("<H", len(entries))
        + table
        + bytes(4)
    )


@pytest.mark.parametrize(
    "data, expected",
    [
        pytest.param(tiff(2, 1, 16, b"\xff\x12\x00\x80"), [0x12, 0x80], id="16 bits"),
        pytest.param(
            tiff(2, 1, 16, b"\xff\x12\x00\x80", colours=0), [0xED, 0x7F], id="16 bits, white is zero"
        ),
        pytest.param(tiff(2, 1, 12, b"\x12\x3f\xed"), [0x12, 0xFE], id="12 bits"),
        pytest.param(tiff(2, 1, 8, b"\x07\xf0"), [7, 240], id="8 bits"),
        pytest.param(tiff(2, 1, 8, b"\x07\xf0", colours=0), [248, 15], id="8 bits, white is zero"),
        pytest.param(tiff(2, 1, 8, zlib.compress(b"\x07\xf0"), compression=8), [7, 240], id="Deflate"),
        pytest.param(tiff(8, 1, 1, b"\x50"), [0, 255, 0, 255, 0, 0, 0, 0], id="1 bit"),
    ],
)
def test_tiffs_built_bit_by_bit(data, expected):
    np.testing.assert_array_equal(verdict(data, "tif"), [[[value] * 3 for value in expected]])


@pytest.mark.parametrize(
    "data, reason",
    [
        (tiff(1, 1, 32, bytes(4), format=3), "TIFF of floats"),
        (tiff(1, 1, 16, bytes(2), format=3), "TIFF of floats"),
        (tiff(1, 1, 64, bytes(8), format=3), "TIFF of floats"),
        (tiff(1, 1, 32, bytes(4)), "more than 16 bits"),
        (tiff(1, 1, 16, bytes(2), format=2), "signed"),
        (tiff(8, 8, 8, bytes(64), compression=7), "compression 7"),
        (tiff(1, 1, 8, bytes(1), colours=32803), "colour space 32803"),
        (tiff(60_000, 60_000, 8, bytes(8)), "too large"),
        (tiff(16, 16, 8, bytes(8), tile=1 << 20), "too large"),
        (tiff(2, 1, 8, zlib.compress(b"\x07\xf0")[:-4] + bytes(4), compression=8), "cannot be decoded"),
        (tiff(2, 1, 8, zlib.compress(bytes(10**7)), compression=8), "truncated"),  # more than its pixels
        (b"II*\0", "cannot be decoded"),
        (b"II*\0\xff\xff\xff\xff", "cannot be decoded"),
        (b"MM\0*" + bytes(100), "cannot be decoded"),
        (b"GIF89a" + bytes(10), "not a tif image"),
    ],
)
def test_a_tiff_that_is_not_taken_says_why(data, reason):
    with pytest.raises(BadImage) as refused:
        probe(data, "tif", 10**6)
    assert reason in refused.value.reason


@pytest.mark.parametrize("kind, extension", NEW)
def test_a_file_of_several_images_is_refused(kind, extension):
    second = Image.fromarray(255 - np.asarray(PHOTO))
    with pytest.raises(BadImage, match="more than one image"):
        probe(saved(PHOTO, kind, save_all=True, append_images=[second]), extension, 10**6)


@pytest.mark.parametrize("kind, extension", NEW)
def test_a_size_is_refused_by_the_header(kind, extension, monkeypatch):
    data = saved(PHOTO, kind)
    assert probe(data, extension, 96 * 192) == (192, 96)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(BadImage, match="too large"):
        probe(data, extension, 96 * 192 - 1)


@pytest.mark.parametrize("kind, extension", NEW)
def test_a_pillow_that_cannot_read_a_format_is_named(kind, extension, monkeypatch):
    monkeypatch.setattr("csdn.data.images.features.check", lambda name: False)
    with pytest.raises(BadImage, match="this Pillow"):
        probe(saved(PHOTO, kind), extension, 10**6)


def test_what_is_transparent_becomes_black():
    rgba = np.zeros((16, 32, 4), np.uint8)
    rgba[:] = (200, 100, 50, 255)
    rgba[:, 16:, 3] = 51
    for kind, extension, options in (("WEBP", "webp", {"lossless": True}), ("TIFF", "tif", {})):
        found = decode(saved(Image.fromarray(rgba), kind, **options), extension)
        assert found[0, 0].tolist() == [200, 100, 50] and found[0, 31].tolist() == [40, 20, 10]
