"""docs/images.md, line by line: files built bit by bit, pixels worked out by hand."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from make_images import UPRIGHT, encoded, pixels
from PIL import Image, ImageCms

from csdn.data.images import decode, probe

BLACK, WHITE, RED, BLUE = [0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255]
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # PNG's colour types


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, bits: int, kind: int, *rows: bytes, before: bytes = b"", behind: bytes = b"") -> bytes:
    """A PNG of these rows, with chunks before and behind the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + before + body + behind + chunk(b"IEND", b"")


def grey(*values: int) -> list[list[int]]:
    return [[value] * 3 for value in values]


TWO_COLOURS = chunk(b"PLTE", bytes(RED + BLUE))


@pytest.mark.parametrize(
    "data, expected",
    [
        pytest.param(png(2, 8, RGB, bytes(RED + BLUE)), [RED, BLUE], id="RGB"),
        pytest.param(png(4, 1, GREY, b"\x50"), grey(0, 255, 0, 255), id="grey of 1 bit"),
        pytest.param(png(4, 2, GREY, b"\x1b"), grey(0, 85, 170, 255), id="grey of 2 bits"),
        pytest.param(png(2, 4, GREY, b"\x3f"), grey(51, 255), id="grey of 4 bits"),
        pytest.param(png(2, 8, GREY, b"\x07\xf0"), grey(7, 240), id="grey of 8 bits"),
        pytest.param(png(2, 16, GREY, b"\x12\xff\x80\x00"), grey(0x12, 0x80), id="grey of 16 bits"),
        pytest.param(png(1, 16, RGB, b"\x12\xff\x80\x00\x00\xff"), [[0x12, 0x80, 0]], id="RGB of 16 bits"),
        pytest.param(png(2, 1, PALETTE, b"\x40", before=TWO_COLOURS), [RED, BLUE], id="palette of 1 bit"),
        pytest.param(png(2, 8, PALETTE, b"\1\0", before=TWO_COLOURS), [BLUE, RED], id="palette of 8 bits"),
        pytest.param(
            png(2, 8, PALETTE, b"\1\0", before=TWO_COLOURS + chunk(b"tRNS", b"\x00")),
            [BLUE, BLACK],
            id="palette, its first colour transparent",
        ),
        pytest.param(
            png(3, 8, GREY_ALPHA, bytes([200, 255, 200, 0, 200, 51])), grey(200, 0, 40), id="grey and alpha"
        ),
        pytest.param(
            png(2, 16, GREY_ALPHA, b"\xc8\x11\xff\xff\xc8\x11\x33\x00"),
            grey(200, 40),
            id="grey and alpha of 16 bits",
        ),
        pytest.param(
            png(2, 8, RGBA, bytes([200, 100, 50, 0, 200, 100, 50, 51])),
            [BLACK, [40, 20, 10]],
            id="RGB and alpha",
        ),
        pytest.param(
            png(1, 16, RGBA, b"\xc8\0\x64\0\x32\0\x33\x00"), [[40, 20, 10]], id="RGB and alpha of 16 bits"
        ),
        pytest.param(
            png(2, 8, GREY, b"\x07\x09", before=chunk(b"tRNS", b"\0\x07")),
            grey(0, 9),
            id="grey, one value transparent",
        ),
        pytest.param(
            png(2, 16, GREY, b"\x12\x34\x12\x35", before=chunk(b"tRNS", b"\x12\x34")),
            grey(0, 0x12),
            id="grey of 16 bits, one value transparent",
        ),
        pytest.param(
            png(2, 8, RGB, bytes(RED + BLUE), before=chunk(b"tRNS", b"\0\xff\0\0\0\0")),
            [BLACK, BLUE],
            id="RGB, one colour transparent",
        ),
        pytest.param(
            png(2, 1, GREY, b"\x40", before=chunk(b"tRNS", b"\0\1")),
            grey(0, 0),
            id="1 bit, white transparent",
        ),
        pytest.param(
            png(1, 8, RGB, bytes([200, 100, 50]), before=chunk(b"gAMA", struct.pack(">I", 100_000))),
            [[200, 100, 50]],
            id="gamma is not applied",
        ),
    ],
)
def test_every_kind_of_png(data, expected):
    np.testing.assert_array_equal(decode(data, "png"), [expected])
    assert probe(data, "png", 100) == (1, len(expected))


def test_a_16_bit_infrared_image_keeps_its_whole_range():
    ramp = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(decode(encoded(ramp), "png")[..., 1], np.arange(256).reshape(16, 16))


def test_of_an_animated_png_the_first_frame_is_taken():
    frames = [Image.fromarray(np.full((2, 2, 3), value, np.uint8)) for value in (10, 20, 30)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(buffer.getvalue(), "png"), np.full((2, 2, 3), 10))


def bmp(width: int, bits: int, row: bytes, palette: bytes = b"", masks: tuple[int, ...] = ()) -> bytes:
    """A BMP of one row: colours are stored blue first, rows end at a multiple of four bytes."""
    extra = b"".join(struct.pack("<I", mask) for mask in masks)
    row += bytes(-len(row) % 4)
    offset = 14 + 40 + len(extra) + len(palette)
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, 1, 1, bits, 3 * bool(masks), len(row), 0, 0, len(palette) // 4, 0
    )
    return struct.pack("<2sIHHI", b"BM", offset + len(row), 0, 0, offset) + info + extra + palette + row


BMP_PALETTE = bytes([0, 0, 255, 0, 255, 0, 0, 0])  # red, blue
FIVE_SIX_FIVE = (0xF800, 0x07E0, 0x001F)


@pytest.mark.parametrize(
    "data, expected",
    [
        pytest.param(bmp(2, 1, b"\x40", BMP_PALETTE), [RED, BLUE], id="palette of 1 bit"),
        pytest.param(bmp(2, 1, b"\x40", bytes([0, 0, 0, 0, 255, 255, 255, 0])), [BLACK, WHITE], id="1 bit"),
        pytest.param(bmp(3, 4, b"\x01\x00", BMP_PALETTE), [RED, BLUE, RED], id="palette of 4 bits"),
        pytest.param(bmp(2, 8, b"\1\0", BMP_PALETTE), [BLUE, RED], id="palette of 8 bits"),
        pytest.param(bmp(2, 16, b"\x00\x7c\x1f\x00"), [RED, BLUE], id="16 bits, five a colour"),
        pytest.param(bmp(2, 16, b"\x00\xf8\x1f\x00", masks=FIVE_SIX_FIVE), [RED, BLUE], id="16 bits, 5-6-5"),
        pytest.param(bmp(1, 24, bytes([50, 100, 200])), [[200, 100, 50]], id="24 bits"),
        pytest.param(
            bmp(1, 32, bytes([50, 100, 200, 0])), [[200, 100, 50]], id="32 bits: the fourth is no alpha"
        ),
    ],
)
def test_every_kind_of_bmp(data, expected):
    np.testing.assert_array_equal(decode(data, "bmp"), [expected])
    assert probe(data, "bmp", 100) == (1, len(expected))


def jpeg_of(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def test_a_progressive_jpeg_is_the_same_picture_as_a_plain_one():
    image = Image.fromarray(pixels("a", 64, 32))
    plain, progressive = jpeg_of(image), jpeg_of(image, progressive=True)
    assert b"\xff\xc2" in progressive and b"\xff\xc2" not in plain
    np.testing.assert_array_equal(decode(progressive, "jpg"), decode(plain, "jpg"))


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_a_grey_jpeg_has_three_equal_channels(shade):
    data = jpeg_of(Image.new("L", (8, 16), shade))
    np.testing.assert_array_equal(decode(data, "jpg"), np.full((16, 8, 3), shade))


@pytest.mark.parametrize(
    "ink, expected", [((0, 0, 0, 0), WHITE), ((0, 0, 0, 255), BLACK), ((0, 255, 255, 0), RED)]
)
def test_a_cmyk_jpeg_is_what_its_inks_leave(ink, expected):
    image = decode(jpeg_of(Image.new("CMYK", (8, 16), ink)), "jpg")
    assert np.abs(image.astype(int) - expected).max() <= 2


def test_a_colour_profile_is_not_applied():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = Image.fromarray(pixels("a", 64, 32))
    np.testing.assert_array_equal(
        decode(jpeg_of(image, icc_profile=profile), "jpg"), decode(jpeg_of(image), "jpg")
    )
    np.testing.assert_array_equal(decode(encoded(pixels("a"), icc_profile=profile), "png"), pixels("a"))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_says_how_an_image_is_turned(orientation):
    stored = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = UPRIGHT[orientation](stored)
    data = encoded(stored, exif=exif)
    np.testing.assert_array_equal(decode(data, "png"), upright)
    assert probe(data, "png", 100) == upright.shape[:2]
    photo = Image.fromarray(np.kron(stored, np.ones((8, 8, 1), np.uint8)))
    plain, turned = decode(jpeg_of(photo), "jpg"), decode(jpeg_of(photo, exif=exif), "jpg")
    assert np.abs(turned.astype(int) - UPRIGHT[orientation](plain)).max() <= 2
