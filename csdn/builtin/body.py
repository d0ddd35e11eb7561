"""Legs, torso and arms, with what is worn on them."""

from __future__ import annotations

from csdn.builtin.bags import paint_handbag
from csdn.builtin.sketch import Part, Point, Sketch

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
    """An open front shows what is worn underneath."""
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
