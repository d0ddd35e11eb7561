"""One picture of a built-in person by a built-in camera, as the bytes of an image file."""

from __future__ import annotations

import io

from PIL import Image

from csdn.builtin.cameras import cameras_of
from csdn.builtin.people import person
from csdn.builtin.render import render


def picture(number: int, infrared: bool, camera: int, shot: int, kind: str) -> bytes:
    """Picture `shot` of the person `number`; `camera` counts from 0 and repeats after the built-in ones.

    kind: Pillow's name of the format, "JPEG" or "BMP".
    """
    built_in = cameras_of(infrared)
    image = render(person(number), built_in[camera % len(built_in)], 100 * camera + shot)
    buffer = io.BytesIO()
    # Grey pictures are stored as colour pictures, as the benchmarks do.
    Image.fromarray(image).convert("RGB").save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def lines(rows: list[str]) -> bytes:
    """A text file."""
    return "".join(f"{row}\n" for row in rows).encode()
