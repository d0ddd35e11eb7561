"""What people carry."""

from __future__ import annotations

from csdn.builtin.sketch import Part, Point, Sketch


def paint_backpack(sketch: Sketch) -> None:
    u = -0.085 * sketch.side
    half = (0.082 * abs(sketch.front) + 0.052 * abs(sketch.side)) * (0.9 + 0.1 * sketch.girth)
    left, right = (sketch.x + (u + end) * sketch.height for end in (-half, half))
    top, low = (sketch.top + v * sketch.height for v in (0.19, 0.43))
    sketch.pen.rounded_rectangle((left, top, right, low), radius=0.035 * sketch.height, fill=Part.BAG)
    sketch.block(u, half * 0.7, 0.33, 0.345, Part.STRAP)


def paint_straps(sketch: Sketch) -> None:
    """What one sees of a backpack from the front."""
    for sign in (-1, 1):
        u = sign * 0.062 * sketch.girth * sketch.front + 0.01 * sketch.side
        sketch.block(u, 0.014, 0.17, 0.35, Part.BAG)


def paint_satchel(sketch: Sketch) -> None:
    sign = 1 if sketch.front >= 0 else -1  # worn on one side of the body, whichever way it faces
    start, end = -sign * sketch.shoulder * 0.7, sign * sketch.hip * 1.15
    sketch.trapezoid(start - 0.014, start + 0.014, 0.17, end - 0.016, end + 0.012, 0.46, Part.STRAP)
    sketch.block(end, 0.062, 0.45, 0.565, Part.BAG)
    sketch.block(end, 0.062, 0.485, 0.497, Part.STRAP)


def paint_handbag(sketch: Sketch, hand: Point) -> None:
    u, v = hand
    for side in (-0.028, 0.028):
        sketch.limb((u + side, v + 0.05), (u, v + 0.005), 0.007, 1.0, Part.STRAP)
    sketch.trapezoid(u - 0.058, u + 0.058, v + 0.05, u - 0.068, u + 0.068, v + 0.155, Part.BAG)
