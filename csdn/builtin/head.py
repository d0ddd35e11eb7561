"""Head, hair, hat and scarf."""

from __future__ import annotations

from csdn.builtin.sketch import Part, Sketch


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
    """`back`: where the back of the head is."""
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
