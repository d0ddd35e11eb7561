"""Drawing a synthetic person (csdn.synthetic.people) as a map of part ids, at three times the final
resolution.

`Sketch` has the measures and shapes of a body, the `paint_...` functions draw its parts, and `draw_person`
calls them from back to front. csdn.synthetic.rendering turns part ids into pixels.

Coordinates are in units of the person's height: v = 0 is the top of the head, v = 1 the soles; u = 0 is the
axis of the body, positive to the right of the image.
"""

from __future__ import annotations

from enum import IntEnum
from math import cos, hypot, radians, sin
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from csdn.synthetic.people import BAG, HAIR, HAT, LOWER, PATTERN, UPPER, Shape

HEIGHT, WIDTH = 64, 32  # of a finished image, pixels
OVERSAMPLING = 3
CANVAS = (WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING)  # Pillow's order: width, height
BODY = 40  # from here on part ids belong to the person, below to the surroundings
SECOND = 32  # added to the part id of a garment where its pattern has the second colour

Point = tuple[float, float]


class Part(IntEnum):
    """Part ids of a person; FAR marks the arm and leg on the far side."""

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
    """How a person stands on the canvas."""

    yaw: float  # degrees; 0 faces the camera, 90 faces the image's right, 180 shows the back
    phase: float  # of the gait, radians
    stride: float  # half the step's length, in heights
    scale: float  # canvas pixels of an average person's height
    x: float  # of the body's axis on the canvas
    y: float  # of the soles on the canvas


class Sketch:
    """One person in one pose: the measures of the body, and methods that draw shapes in the person's
    units.
    """

    def __init__(self, canvas: Image.Image, shape: Shape, pose: Pose) -> None:
        self.pen = ImageDraw.Draw(canvas)
        self.front, self.side = cos(radians(pose.yaw)), sin(radians(pose.yaw))
        self.away = self.front < 0
        self.height = pose.scale * shape.height
        self.girth = shape.width / shape.height  # width does not grow with height
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
        """Half the visible breadth, at this yaw, of an ellipse with these half-axes."""
        return hypot(breadth * self.front, depth * self.side) * self.girth

    def sign(self, far: bool) -> int:
        """The side of the axis on which the near (or far) arm and leg are: 1 or -1."""
        nearer = 1 if self.side >= 0 else -1
        return -nearer if far else nearer

    def polygon(self, points: list[Point], part: int) -> None:
        self.pen.polygon(
            [(self.x + u * self.height, self.top + v * self.height) for u, v in points], fill=part
        )

    def trapezoid(
        self, left: float, right: float, top: float, low_left: float, low_right: float, low: float, part: int
    ) -> None:
        """A shape with horizontal edges at v = `top` and v = `low`."""
        self.polygon([(left, top), (right, top), (low_right, low), (low_left, low)], part)

    def block(self, u: float, half: float, top: float, low: float, part: int) -> None:
        self.trapezoid(u - half, u + half, top, u - half, u + half, low, part)

    def ellipse(self, u: float, v: float, across: float, down: float, part: int) -> None:
        """An ellipse around (u, v); `across` and `down` are its half-axes."""
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


# What people carry.


def paint_backpack(sketch: Sketch) -> None:
    u = -0.085 * sketch.side
    half = (0.082 * abs(sketch.front) + 0.052 * abs(sketch.side)) * (0.9 + 0.1 * sketch.girth)
    left, right = (sketch.x + (u + end) * sketch.height for end in (-half, half))
    top, low = (sketch.top + v * sketch.height for v in (0.19, 0.43))
    sketch.pen.rounded_rectangle((left, top, right, low), radius=0.035 * sketch.height, fill=Part.BAG)
    sketch.block(u, half * 0.7, 0.33, 0.345, Part.STRAP)


def paint_straps(sketch: Sketch) -> None:
    """The part of a backpack that is visible from the front."""
    for sign in (-1, 1):
        u = sign * 0.062 * sketch.girth * sketch.front + 0.01 * sketch.side
        sketch.block(u, 0.014, 0.17, 0.35, Part.BAG)


def paint_satchel(sketch: Sketch) -> None:
    sign = 1 if sketch.front >= 0 else -1  # always worn on the same side of the body
    start, end = -sign * sketch.shoulder * 0.7, sign * sketch.hip * 1.15
    sketch.trapezoid(start - 0.014, start + 0.014, 0.17, end - 0.016, end + 0.012, 0.46, Part.STRAP)
    sketch.block(end, 0.062, 0.45, 0.565, Part.BAG)
    sketch.block(end, 0.062, 0.485, 0.497, Part.STRAP)


def paint_handbag(sketch: Sketch, hand: Point) -> None:
    u, v = hand
    for side in (-0.028, 0.028):
        sketch.limb((u + side, v + 0.05), (u, v + 0.005), 0.007, 1.0, Part.STRAP)
    sketch.trapezoid(u - 0.058, u + 0.058, v + 0.05, u - 0.068, u + 0.068, v + 0.155, Part.BAG)


# Head, hair, hat and scarf.


def paint_head(sketch: Sketch) -> None:
    turn = 0.022 * sketch.side
    sketch.limb((0, 0.13), (0, 0.165), 0.028, 1.1, Part.NECK)
    if sketch.hair == "curly hair":
        sketch.ellipse(-0.4 * turn, 0.06, 0.078, 0.074, Part.HAIR)
    sketch.ellipse(turn * 0.4, 0.076, 0.052, 0.066, Part.SKIN)
    if sketch.hair != "no hair":
        _paint_hair(sketch, back=-1.6 * turn)
    if sketch.front > 0.2:
        for eye in (-0.019, 0.019):
            sketch.ellipse(eye * sketch.front + 1.3 * turn, 0.078, 0.0075, 0.006, Part.EYES)
    if sketch.hat == "cap":
        _paint_cap(sketch)
    elif sketch.hat == "hat":
        sketch.ellipse(0, 0.042, 0.056, 0.05, Part.HAT)
        sketch.ellipse(0, 0.05, 0.104, 0.018, Part.BRIM)


def _paint_hair(sketch: Sketch, back: float) -> None:
    """`back`: u of the back of the head."""
    if sketch.away:
        sketch.ellipse(0, 0.066, 0.056, 0.062, Part.HAIR)
        paint_falling_hair(sketch)
    else:
        crown = [(-0.054, 0.072), (-0.05, 0.02), (0.0, -0.004), (0.05, 0.02), (0.054, 0.072)]
        sketch.polygon([*crown, (0.035, 0.04), (-0.035, 0.04)], Part.HAIR)
        sketch.ellipse(0, 0.026, 0.05, 0.028, Part.HAIR)
        if abs(sketch.side) > 0.4:
            sketch.ellipse(back, 0.062, 0.045, 0.055, Part.HAIR)
    if sketch.hair == "a bun":
        sketch.ellipse(back * 1.2, -0.012, 0.032, 0.03, Part.HAIR)


def paint_falling_hair(sketch: Sketch) -> None:
    """Long hair or a ponytail, which hangs down the back."""
    back = -0.045 * sketch.side
    if sketch.hair == "long hair":
        sketch.trapezoid(back - 0.062, back + 0.062, 0.05, back - 0.07, back + 0.07, 0.24, Part.HAIR)
    elif sketch.hair == "a ponytail":
        tail = back * 2 + (0.06 if sketch.front > 0 else 0.0)
        sketch.limb((back, 0.05), (tail, 0.09), 0.022, 1.0, Part.HAIR)
        sketch.limb((tail, 0.09), (tail * 1.15, 0.24), 0.026, 0.5, Part.HAIR)


def _paint_cap(sketch: Sketch) -> None:
    crown = [(-0.056, 0.058), (-0.05, 0.012), (0.0, -0.008), (0.05, 0.012), (0.056, 0.058)]
    sketch.polygon(crown, Part.HAT)
    if sketch.front > -0.3:
        sketch.ellipse(0.0715 * sketch.side, 0.058, 0.03 + 0.025 * abs(sketch.front), 0.012, Part.BRIM)


def paint_scarf(sketch: Sketch) -> None:
    sketch.ellipse(0, 0.162, 0.064 * sketch.girth, 0.026, Part.SCARF)
    if not sketch.away:
        u = 0.03 * sketch.front + 0.04 * sketch.side
        sketch.trapezoid(u - 0.024, u + 0.024, 0.17, u - 0.026, u + 0.022, 0.33, Part.SCARF_END)


# Legs, torso and arms, with their garments.


BULK = {"coat": 1.12, "jacket": 1.12, "sweater": 1.05}  # breadth of the torso in a garment
SLEEVE_BULK = {"coat": 1.25, "jacket": 1.25, "sweater": 1.1}


def paint_leg(sketch: Sketch, far: bool) -> None:
    hip = sketch.sign(far) * 0.048 * sketch.girth * sketch.front
    swing = sketch.swing * (1 if far else -1)
    lift = sketch.lift * 0.6 if far else 0.0
    foot = (hip + swing * sketch.side, 0.965 - lift)
    knee = ((hip + foot[0]) / 2 + 0.3 * abs(swing) * sketch.side, (sketch.crotch + foot[1]) / 2)
    top, skin = (hip, sketch.crotch), Part.SKIN_FAR if far else Part.SKIN
    sketch.limb(top, knee, 0.047 * sketch.girth, 0.75, skin)
    sketch.limb(knee, foot, 0.035 * sketch.girth, 0.7, skin)
    _paint_trouser_leg(sketch, top, knee, foot, Part.LOWER_FAR if far else Part.LOWER)
    toe = (foot[0] + 0.045 * sketch.side, 0.98 - lift)
    sketch.limb((foot[0], toe[1]), toe, 0.026, 1.0, Part.SHOES_FAR if far else Part.SHOES)


def _paint_trouser_leg(sketch: Sketch, top: Point, knee: Point, foot: Point, part: int) -> None:
    girth = sketch.girth
    if sketch.lower == "trousers":
        sketch.limb(top, knee, 0.060 * girth, 0.92, part)
        sketch.limb(knee, (foot[0], foot[1] - 0.015), 0.055 * girth, 0.95, part)
    elif sketch.lower == "leggings":
        sketch.limb(top, knee, 0.049 * girth, 0.78, part)
        sketch.limb(knee, (foot[0], foot[1] - 0.02), 0.037 * girth, 0.65, part)
    elif sketch.lower == "shorts":
        sketch.limb(top, knee, 0.064 * girth, 1.0, part)


def paint_hips(sketch: Sketch) -> None:
    """The lower garment above the legs, and a skirt over them."""
    top, waist, hip = sketch.crotch - 0.07, sketch.waist, sketch.hip
    sketch.trapezoid(-waist, waist, top, -hip, hip, sketch.crotch, Part.LOWER)
    if "skirt" not in sketch.lower:
        return
    long = sketch.lower == "long skirt"
    hem, flare = (0.93, 1.28 * hip) if long else (sketch.crotch + 0.17, 1.55 * hip)
    sway = sketch.swing * sketch.side * 0.3
    sketch.trapezoid(-waist, waist, top, -flare + sway, flare + sway, hem, Part.LOWER)
    for fold in (-0.45, 0.25):
        low = [(fold * flare + sway, hem), ((fold + 0.2) * flare + sway, hem)]
        sketch.polygon([(fold * waist, top + 0.08), *low], Part.LOWER_FOLD)


def paint_torso(sketch: Sketch) -> None:
    hem = sketch.crotch + {"coat": 0.15, "jacket": 0.02}.get(sketch.upper, -0.03)
    bulk = BULK.get(sketch.upper, 0.96)
    end = sketch.hip * {"coat": 1.3, "jacket": 1.12}.get(sketch.upper, 1.0) * bulk
    shoulder, waist = sketch.shoulder * bulk, sketch.waist * bulk
    half = [(0.035 * sketch.girth, 0.158), (shoulder * 0.86, 0.178), (shoulder, 0.21), (waist * 1.04, 0.36)]
    half += [(waist, sketch.crotch - 0.1), (end, hem)]
    sketch.polygon(half + [(-u, v) for u, v in reversed(half)], Part.UPPER)
    if sketch.upper in ("jacket", "coat"):
        sketch.block(0, end, hem - 0.012, hem, Part.HEM)
        if sketch.front > 0.25:
            _paint_opening(sketch)
    elif sketch.front > 0:
        sketch.ellipse(0.03 * sketch.side, 0.16, 0.042 * sketch.girth, 0.022, Part.NECK)


def _paint_opening(sketch: Sketch) -> None:
    """The inner garment that shows in an open front."""
    u, half = 0.05 * sketch.side, 0.030 * sketch.front
    low = sketch.crotch + (0.15 if sketch.upper == "coat" else 0.02)
    sketch.trapezoid(u - half, u + half, 0.155, u - half * 0.8, u + half * 0.8, low, Part.INNER)


def paint_arm(sketch: Sketch, far: bool) -> None:
    sign = sketch.sign(far) * (0.6 if far and abs(sketch.front) < 0.3 else 1)  # half hidden from the side
    top = (sign * 0.112 * sketch.girth * abs(sketch.front) - 0.01 * sketch.side, 0.205)
    swing = sketch.swing * (-0.9 if far else 0.9) * sketch.side
    elbow = (top[0] + sign * 0.022 + swing * 0.4, 0.345)
    hand = (top[0] + sign * 0.018 + swing * 1.1 + 0.02 * sketch.side, 0.475)
    skin, width = Part.SKIN_FAR if far else Part.SKIN, 0.029 * sketch.girth
    sketch.limb(top, elbow, width, 0.85, skin)
    sketch.limb(elbow, hand, width * 0.85, 0.7, skin)
    sketch.ellipse(hand[0], hand[1] + 0.012, 0.02, 0.022, skin)
    _paint_sleeve(sketch, top, elbow, hand, Part.SLEEVE_FAR if far else Part.SLEEVE)
    if sketch.bag == "handbag" and not far:
        paint_handbag(sketch, hand)


def _paint_sleeve(sketch: Sketch, top: Point, elbow: Point, hand: Point, part: int) -> None:
    width = 0.029 * sketch.girth
    if sketch.upper == "tee":
        middle = ((top[0] * 0.4 + elbow[0] * 0.6), (top[1] * 0.4 + elbow[1] * 0.6))
        sketch.limb(top, middle, width * 1.25, 1.0, part)
    elif sketch.upper != "vest":
        width *= SLEEVE_BULK.get(sketch.upper, 1.0)
        sketch.limb(top, elbow, width, 0.95, part)
        sketch.limb(elbow, (hand[0], hand[1] - 0.02), width * 0.92, 0.8, part)


# The whole person: the yaw decides the order of the parts, from back to front; the pattern comes last.


PERIODS = (0.058, 0.084, 0.118)  # of a pattern, in heights: fine, medium, coarse


def draw_person(canvas: Image.Image, shape: Shape, pose: Pose) -> Image.Image:
    """Paint a person over `canvas` (mode L, part ids) and return the map with the pattern in place."""
    sketch = Sketch(canvas, shape, pose)
    backpack = sketch.bag == "backpack"
    if not sketch.away:  # seen from the front, things on the back are behind everything else
        if backpack:
            paint_backpack(sketch)
        paint_falling_hair(sketch)
    paint_arm(sketch, far=True)
    paint_leg(sketch, far=True)
    paint_leg(sketch, far=False)
    paint_hips(sketch)
    paint_torso(sketch)
    if sketch.bag == "satchel":
        paint_satchel(sketch)
    paint_arm(sketch, far=False)
    paint_head(sketch)
    if shape.scarf:
        paint_scarf(sketch)
    if backpack:
        paint_backpack(sketch) if sketch.away else paint_straps(sketch)
    return _with_pattern(canvas, shape, sketch)


def _with_pattern(canvas: Image.Image, shape: Shape, sketch: Sketch) -> Image.Image:
    """Add SECOND to the part ids of the upper garment where its pattern has the second colour."""
    name = PATTERN[shape.pattern]
    if name == "plain":
        return canvas
    first, last = max(0, int(sketch.top + 0.14 * sketch.height)), int(sketch.top + 0.72 * sketch.height)
    ids = np.array(canvas)
    rows = ids[first:last]
    v = (np.arange(first, first + len(rows), dtype=np.float32)[:, None] - sketch.top) / sketch.height
    u = (np.arange(CANVAS[0], dtype=np.float32)[None, :] - sketch.x) / sketch.height + 0.06 * sketch.side
    garment = (rows >= Part.UPPER) & (rows <= Part.SLEEVE_FAR)
    rows[garment & second_colour(name, PERIODS[shape.pattern_scale], u, v)] += SECOND
    return Image.fromarray(ids)


def second_colour(pattern: str, period: float, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where a pattern has its second colour, bool [H, W]; u [1, W], v [H, 1] and `period` in heights."""
    across, down = u % period < period / 2, v % period < period / 2
    match pattern:
        case "striped":
            where = down
        case "vertical":
            where = across
        case "diagonal":
            where = (u + v) % (period * 1.2) < period * 0.6
        case "checked":
            where = across ^ down
        case "dotted":
            where = (u % period - period / 2) ** 2 + (v % period - period / 2) ** 2 < (0.34 * period) ** 2
        case "banded":
            where = (v > 0.25) & (v < 0.25 + period)
        case "split":
            where = v > 0.24 + period * 1.1
    return np.broadcast_to(where, (v.shape[0], u.shape[1]))
