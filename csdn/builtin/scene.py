"""What one image draws for itself: the pose, what stands around and in front, and how the light falls."""

from __future__ import annotations

from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from csdn.builtin.cameras import Camera
from csdn.builtin.sketch import CANVAS, Pose

# Part ids of the surroundings; the person's own begin at csdn.builtin.sketch.BODY.
WALL, FLOOR, PANEL, EDGE, OPENING, TILE, SHADOW = range(1, 8)
CLUTTER = (10, 11, 12, 13)  # things that happen to stand there; their reflectance is drawn per image
OCCLUDER, OCCLUDER_EDGE = 20, 21


def draw_pose(camera: Camera, rng: np.random.Generator) -> Pose:
    """How a person happens to stand, and how the detector happened to crop."""
    width, height = CANVAS
    scale = rng.uniform(*camera.scale)
    return Pose(
        yaw=float(rng.choice(camera.yaws) + rng.normal(0, camera.spread)),
        phase=rng.uniform(0, 2 * pi),
        stride=rng.uniform(0.04, 0.14),
        scale=scale,
        x=width / 2 + rng.normal(0, 4.5),
        y=(height + scale) / 2 + rng.normal(0, 6.0),
    )


def draw_surroundings(camera: Camera, pose: Pose, rng: np.random.Generator) -> Image.Image:
    """The map of part ids behind the person: the camera's place, shifted, with things standing around."""
    width, height = CANVAS
    canvas = Image.new("L", CANVAS, WALL)
    pen = ImageDraw.Draw(canvas)
    horizon = height * (camera.horizon + rng.uniform(-0.05, 0.05))
    shift = rng.uniform(0, 2 * camera.panel)
    for left in np.arange(-shift, width, 2 * camera.panel):
        pen.rectangle((left, 0, left + camera.panel, horizon), fill=PANEL)
    if rng.random() < 0.4:
        left = rng.uniform(-20, width - 20)
        top = horizon * rng.uniform(0.1, 0.5)
        pen.rectangle((left, top, left + rng.uniform(25, 50), horizon), fill=OPENING)
    pen.rectangle((0, horizon, width, height), fill=FLOOR)
    pen.rectangle((0, horizon - 4, width, horizon), fill=EDGE)
    for row in (1, 2, 3):  # rows of tiles grow towards the viewer
        y = horizon + 12 * row**1.5
        pen.line((0, y, width, y), fill=TILE, width=2)
    for part in CLUTTER[: rng.integers(1, len(CLUTTER) + 1)]:
        _thing(pen, part, horizon, rng)
    pen.ellipse((pose.x - 32, pose.y - 8, pose.x + 32, pose.y + 6), fill=SHADOW)
    return canvas


def _thing(pen: ImageDraw.ImageDraw, part: int, horizon: float, rng: np.random.Generator) -> None:
    x, breadth = rng.uniform(0, CANVAS[0]), rng.uniform(5, 26)
    base = horizon + rng.uniform(-10, 25)
    top = base - rng.uniform(20, 120)
    kind = rng.integers(4)
    if kind == 0:
        pen.rectangle((x - breadth / 2, top, x + breadth / 2, base), fill=part)
    elif kind == 1:
        pen.ellipse((x - breadth, top, x + breadth, base), fill=part)
    elif kind == 2:
        pen.line((x, base, x + rng.uniform(-15, 15), top), fill=part, width=int(breadth / 3) + 2)
    else:  # somebody far away
        pen.ellipse((x - 5, base - 60, x + 5, base - 48), fill=part)
        pen.polygon([(x - 9, base - 46), (x + 9, base - 46), (x + 6, base), (x - 6, base)], fill=part)


def draw_occluder(canvas: Image.Image, camera: Camera, rng: np.random.Generator) -> None:
    """Something between the camera and the person: a counter, a post, or a leaf from the side."""
    present, where, size = rng.random() < camera.occlusion, rng.random(), rng.random()
    left_side, form = rng.integers(2) == 1, rng.integers(3)
    if not present:
        return
    width, height = CANVAS
    pen = ImageDraw.Draw(canvas)
    if form == 0:
        top = height * (0.68 + 0.2 * where)
        pen.rectangle((0, top, width, height), fill=OCCLUDER)
        pen.rectangle((0, top, width, top + 4), fill=OCCLUDER_EDGE)
    elif form == 1:
        left = where * width
        pen.rectangle((left, 0, left + 6 + 12 * size, height), fill=OCCLUDER)
        pen.rectangle((left, 0, left + 3, height), fill=OCCLUDER_EDGE)
    else:
        reach, middle = width * (0.15 + 0.25 * size), height * (0.2 + 0.7 * where)
        x = 0 if left_side else width
        pen.ellipse((x - reach, middle - 40, x + reach, middle + 40), fill=OCCLUDER)
        pen.ellipse((x - reach / 2, middle - 30, x + reach / 2, middle + 5), fill=OCCLUDER_EDGE)


def light_field(camera: Camera, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Relative light, float32 [H, W] around 1: a fall-off in some direction, and soft patches of shade."""
    height, width = shape
    angle, strength = rng.uniform(0, 2 * pi), camera.gradient * rng.uniform(0.3, 1.0)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(sin(angle) * strength)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * np.float32(cos(angle) * strength)
    patches = rng.normal(1.0, 0.10, (6, 3)).astype(np.float32)
    soft = np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC))
    return (1 + x + y) * soft * np.float32(rng.uniform(0.8, 1.2))
