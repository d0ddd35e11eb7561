"""A whole person: parts painted from back to front, as the yaw decides, then the garment's pattern."""

from __future__ import annotations

import numpy as np
from PIL import Image

from csdn.builtin.bags import paint_backpack, paint_satchel, paint_straps
from csdn.builtin.body import paint_arm, paint_hips, paint_leg, paint_torso
from csdn.builtin.head import paint_falling_hair, paint_head, paint_scarf
from csdn.builtin.people import PATTERN, Shape
from csdn.builtin.sketch import CANVAS, SECOND, Part, Pose, Sketch

PERIODS = (0.058, 0.084, 0.118)  # of a pattern, in heights: fine, medium, coarse


def draw_person(canvas: Image.Image, shape: Shape, pose: Pose) -> Image.Image:
    """Paint a person over `canvas` (mode L, part ids) and return the map with the pattern in place."""
    sketch = Sketch(canvas, shape, pose)
    backpack = sketch.bag == "backpack"
    if not sketch.away:  # what hangs on the back is behind everything else
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
    """Second colour of the upper garment: its parts' ids raised by SECOND where the pattern says so."""
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
