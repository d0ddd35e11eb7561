"""Every kind of image file that cameras write becomes RGB by one rule; everything else is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
from make_images import encoded, huge_png, jpeg, pixels
from PIL import Image

from csdn.data.images import BadImage, decode, extension_of, probe


def reason(data: bytes, extension: str, max_pixels: int = 10**6) -> str:
    with pytest.raises(BadImage) as refused:
        probe(data, extension, max_pixels)
    return refused.value.reason


@pytest.mark.parametrize("kind, extension", [("PNG", "png"), ("BMP", "bmp")])
def test_lossless_colour_comes_back_exactly(kind, extension):
    image = pixels("a")
    np.testing.assert_array_equal(decode(encoded(image, kind), extension), image)


def test_a_jpeg_is_what_pillow_makes_of_it():
    data = jpeg("a", 288, 144)
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data, "jpg") - pillow).max() <= 1


@pytest.mark.parametrize(
    "name, extension",
    [
        ("a/b.JPG", "jpg"),
        ("b.jpeg", "jpg"),
        ("b.Png", "png"),
        ("x.y/b.bmp", "bmp"),
        ("b.gif", None),
        ("jpg", None),
        (".jpg", None),
        ("x.jpg/readme", None),
    ],
)
def test_the_ending_of_a_name_decides(name, extension):
    assert extension_of(name) == extension


@pytest.mark.parametrize(
    "data, extension, expected",
    [
        (b"", "jpg", "empty file"),
        (b"hello", "jpg", "not a jpg image"),
        (jpeg("a"), "png", "not a png image"),
        (encoded(pixels("a")), "jpg", "not a jpg image"),
        (jpeg("a", 64, 32)[:-200], "jpg", "truncated"),
        (encoded(pixels("a", 64, 32))[:-60], "png", "truncated"),
        (encoded(pixels("a"), "BMP")[:-10], "bmp", "truncated"),
        (b"\xff\xd8" + b"\0" * 50, "jpg", "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "png", "cannot be decoded"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(data, extension, expected):
    assert reason(data, extension) == expected


def test_a_decompression_bomb_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    assert reason(huge_png(60_000), "png") == "too large"
    assert reason(huge_png(10_000), "png") == "too large"


def test_a_jpeg_with_a_huge_header_is_refused_by_it(monkeypatch):
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: pytest.fail("it was decoded"))
    data = bytearray(jpeg("a"))
    size = data.index(b"\xff\xc0") + 5  # height and width in the frame header
    data[size : size + 4] = b"\xff\xdc\xff\xdc"
    assert reason(bytes(data), "jpg") == "too large"


def test_the_size_bound_is_exact():
    assert probe(encoded(pixels("a", 16, 8)), "png", 16 * 8) == (16, 8)
    assert reason(encoded(pixels("a", 16, 8)), "png", 16 * 8 - 1) == "too large"


def test_what_ingest_proves_good_the_feed_can_decode():
    """The proof decodes luminance alone; on damaged files it must say what a full decoding says."""
    rng = np.random.default_rng(0)
    intact = np.frombuffer(jpeg("a", 64, 32), np.uint8)
    verdicts = set()
    for _ in range(300):
        data = intact.copy()
        data[rng.integers(2, len(data), rng.integers(1, 4))] = rng.integers(0, 256)
        good = []
        for check in (lambda d: probe(d, "jpg", 10**6), lambda d: decode(d, "jpg").shape[:2]):
            try:
                good.append(check(data.tobytes()))
            except BadImage:
                good.append(None)
        if good[1] is None or good[1][0] * good[1][1] <= 10**6:
            assert good[0] == good[1]
        verdicts.add(good[0] is None)
    assert verdicts == {True, False}
