"""What a person is drawn with: part ids at three times the image's resolution, in the person's own units.

Lengths are in the person's height: v = 0 is the top of the head, v = 1 the soles; u = 0 is the body's axis,
positive to the right of the image.
"""

from __future__ import annotations

from enum import IntEnum
from math import cos, hypot, radians, sin
from typing import NamedTuple

from PIL import Image, ImageDraw

from csdn.builtin.people import BAG, HAIR, HAT, LOWER, UPPER, Shape

HEIGHT, WIDTH = 64, 32  # of a finished image, pixels
OVERSAMPLING = 3
CANVAS = (WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING)  # Pillow's order: width, height
BODY = 40  # part ids from here on belong to the person, those below to the surroundings
SECOND = 32  # a garment's part id + SECOND: where its pattern has the second colour

Point = tuple[float, float]


class Part(IntEnum):
    """Part ids of a person; FAR is the side that is turned away."""

    SKIN = 40
    NECK = 41
    HAIR = 42
    LOWER = 43
    LOWER_FAR = 44
    LOWER_FOLD = 45
    SHOES = 46
    SHOES_FAR = 47
    INNER = 48
    BAG = 49
    STRAP = 50
    HAT = 51
    BRIM = 52
    SCARF = 53
    SCARF_END = 54
    EYES = 55
    SKIN_FAR = 56
    UPPER = 60
    SLEEVE = 61
    SLEEVE_FAR = 62
    HEM = 63


class Pose(NamedTuple):
    """How somebody stands in the frame of the canvas."""

    yaw: float  # degrees; 0 faces the camera, 90 faces the image's right, 180 shows the back
    phase: float  # of the gait, radians
    stride: float  # half the step's length, in heights
    scale: float  # canvas pixels of an average person's height
    x: float  # of the body's axis on the canvas
    y: float  # of the soles on the canvas


class Sketch:
    """One person in one pose: the body's measures, and shapes in the person's own units."""

    def __init__(self, canvas: Image.Image, shape: Shape, pose: Pose) -> None:
        self.pen = ImageDraw.Draw(canvas)
        self.front, self.side = cos(radians(pose.yaw)), sin(radians(pose.yaw))
        self.away = self.front < 0
        self.height = pose.scale * shape.height
        self.girth = shape.width / shape.height  # people are not wider because they are tall
        self.x, self.top = pose.x, pose.y - self.height
        self.swing = sin(pose.phase) * pose.stride
        self.lift = max(0.0, cos(pose.phase)) * pose.stride * 0.25
        self.shoulder = self._across(0.118, 0.070)
        self.waist = self._across(0.084, 0.062)
        self.hip = self._across(0.094, 0.072)
        self.crotch = 1 - shape.legs
        self.upper, self.lower = UPPER[shape.upper], LOWER[shape.lower]
        self.hair, self.bag, self.hat = HAIR[shape.hair], BAG[shape.bag], HAT[shape.hat]

    def _across(self, breadth: float, depth: float) -> float:
        """Half the breadth that this yaw shows of something half as wide and deep as given."""
        return hypot(breadth * self.front, depth * self.side) * self.girth

    def sign(self, far: bool) -> int:
        """On which side of the axis the nearer (or the far) arm and leg are."""
        nearer = 1 if self.side >= 0 else -1
        return -nearer if far else nearer

    def polygon(self, points: list[Point], part: int) -> None:
        self.pen.polygon(
            [(self.x + u * self.height, self.top + v * self.height) for u, v in points], fill=part
        )

    def trapezoid(
        self, left: float, right: float, top: float, low_left: float, low_right: float, low: float, part: int
    ) -> None:
        """Between a level edge at v = `top` and one at v = `low`."""
        self.polygon([(left, top), (right, top), (low_right, low), (low_left, low)], part)

    def block(self, u: float, half: float, top: float, low: float, part: int) -> None:
        self.trapezoid(u - half, u + half, top, u - half, u + half, low, part)

    def ellipse(self, u: float, v: float, across: float, down: float, part: int) -> None:
        """`across` and `down` are half the axes."""
        x, y = self.x + u * self.height, self.top + v * self.height
        dx, dy = across * self.height, down * self.height
        self.pen.ellipse((x - dx, y - dy, x + dx, y + dy), fill=part)

    def limb(self, start: Point, end: Point, width: float, taper: float, part: int) -> None:
        """A rounded bar; `width` is half its breadth at the start, `taper` times that at the end."""
        (u0, v0), (u1, v1) = start, end
        length = hypot(u1 - u0, v1 - v0) or 1.0
        nu, nv = (v1 - v0) / length * width, (u0 - u1) / length * width
        corners = [(u0 + nu, v0 + nv), (u1 + nu * taper, v1 + nv * taper)]
        corners += [(u1 - nu * taper, v1 - nv * taper), (u0 - nu, v0 - nv)]
        self.polygon(corners, part)
        self.ellipse(u0, v0, width, width, part)
        self.ellipse(u1, v1, width * taper, width * taper, part)
