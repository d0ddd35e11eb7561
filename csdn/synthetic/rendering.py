"""Rendering: the image of a synthetic person by a synthetic camera, a function of (person, camera, image
number).

A camera has a place, preferred directions and optics. Every image draws its own pose, crop, occluder, clutter
and light within the ranges of its camera. Without this variation raw pixels would identify people, and the
task would be trivial. csdn.synthetic.figure draws the person; csdn.synthetic.sets makes drops of images.
"""

from __future__ import annotations

import io
from math import cos, pi, sin
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from csdn.data.rng import generator
from csdn.synthetic.figure import BODY, CANVAS, HEIGHT, OVERSAMPLING, SECOND, WIDTH, Part, Pose, draw_person
from csdn.synthetic.people import RENDERER_VERSION, Colours, Materials, Person, Stream

RGB = tuple[int, int, int]


class Camera(NamedTuple):
    """A place and a device. Pairs named below are ranges (low, high) of a uniform draw."""

    number: int  # part of every random draw
    name: str
    infrared: bool
    yaws: tuple[float, ...]  # degrees; the directions from which the camera mostly sees people
    spread: float  # standard deviation around them, degrees
    scale: tuple[float, float]  # canvas pixels of an average person's height
    horizon: float  # where the floor begins, share of the frame's height
    panel: int  # breadth of the panels of the wall, canvas pixels
    surroundings: tuple[RGB, ...]  # reflectance of WALL..SHADOW below, 0..255
    occlusion: float  # probability of an occluder
    gradient: float  # strength of the fall-off of light
    gamma: tuple[float, float]
    tint: tuple[float, float, float]
    blur: tuple[float, float]  # standard deviation, pixels
    noise: tuple[float, float]  # standard deviation, 0..255


def palette(colours: str) -> tuple[RGB, ...]:
    """Colours written as rrggbb, separated by blanks."""
    return tuple((red, green, blue) for red, green, blue in map(bytes.fromhex, colours.split()))


def greys(*values: int) -> tuple[RGB, ...]:
    return tuple((value, value, value) for value in values)


CAMERAS = (
    Camera(
        number=0,
        name="cam1",  # entrance, warm light
        infrared=False,
        yaws=(0.0, 25.0, -25.0),
        spread=18.0,
        scale=(150, 176),
        horizon=0.74,
        panel=38,
        surroundings=palette("c4baa8 847a6e b4a894 62564a 6e8496 746a5f 3e3934"),
        occlusion=0.25,
        gradient=0.30,
        gamma=(0.75, 1.15),
        tint=(1.05, 1.0, 0.92),
        blur=(0.2, 0.7),
        noise=(3, 9),
    ),
    Camera(
        number=1,
        name="cam2",  # corridor, seen from behind, cold light
        infrared=False,
        yaws=(180.0, 150.0, -150.0),
        spread=18.0,
        scale=(144, 172),
        horizon=0.66,
        panel=26,
        surroundings=palette("96a0a8 606870 848e98 464e58 3e4c5c 545c64 2e3238"),
        occlusion=0.25,
        gradient=0.40,
        gamma=(0.9, 1.45),
        tint=(0.92, 0.99, 1.07),
        blur=(0.3, 0.9),
        noise=(4, 11),
    ),
    Camera(
        number=2,
        name="cam3",  # courtyard, seen from the side
        infrared=False,
        yaws=(70.0, -70.0, 110.0, -110.0),
        spread=20.0,
        scale=(146, 178),
        horizon=0.58,
        panel=52,
        surroundings=palette("acc4cc 788e62 948070 5c6c48 705446 6a8056 3a482e"),
        occlusion=0.3,
        gradient=0.35,
        gamma=(0.7, 1.1),
        tint=(1.0, 1.02, 0.95),
        blur=(0.2, 0.8),
        noise=(3, 9),
    ),
    Camera(
        number=3,
        name="cam4",  # garage, any direction, dim
        infrared=False,
        yaws=(0.0, 60.0, 120.0, 180.0, -60.0, -120.0),
        spread=30.0,
        scale=(140, 174),
        horizon=0.70,
        panel=64,
        surroundings=palette("7c7870 565452 a08e54 403e3c 303236 64605a 242322"),
        occlusion=0.3,
        gradient=0.50,
        gamma=(1.1, 1.7),
        tint=(1.02, 1.0, 0.96),
        blur=(0.3, 1.0),
        noise=(5, 13),
    ),
    Camera(
        number=4,
        name="cam5",  # infrared lamp at the gate
        infrared=True,
        yaws=(0.0, 35.0, -35.0, 180.0),
        spread=25.0,
        scale=(144, 176),
        horizon=0.72,
        panel=44,
        surroundings=greys(70, 96, 58, 44, 30, 84, 40),
        occlusion=0.25,
        gradient=0.45,
        gamma=(0.8, 1.3),
        tint=(1.0, 1.0, 1.0),
        blur=(0.3, 0.9),
        noise=(5, 14),
    ),
    Camera(
        number=5,
        name="cam6",  # infrared in the yard
        infrared=True,
        yaws=(75.0, -75.0, 180.0, 140.0, -140.0, 0.0),
        spread=25.0,
        scale=(140, 174),
        horizon=0.62,
        panel=30,
        surroundings=greys(104, 72, 120, 60, 46, 62, 36),
        occlusion=0.3,
        gradient=0.50,
        gamma=(0.8, 1.4),
        tint=(1.0, 1.0, 1.0),
        blur=(0.4, 1.1),
        noise=(6, 16),
    ),
)


def cameras_of(infrared: bool, cameras: tuple[Camera, ...] = CAMERAS) -> list[Camera]:
    """The cameras of one modality."""
    return [camera for camera in cameras if camera.infrared == infrared]


# The random parts of one image: pose, surroundings, occluder and light.


# Part ids of the surroundings; those of the person begin at csdn.synthetic.figure.BODY.
WALL, FLOOR, PANEL, EDGE, OPENING, TILE, SHADOW = range(1, 8)
CLUTTER = (10, 11, 12, 13)  # objects in the background; their reflectance is drawn for each image
OCCLUDER, OCCLUDER_EDGE = 20, 21


def draw_pose(camera: Camera, rng: np.random.Generator) -> Pose:
    """Draw the pose of a person and the crop of the detector."""
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
    """Draw the map of part ids behind the person: the camera's place, shifted, with clutter."""
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
    for row in (1, 2, 3):  # tiles are larger the nearer they are
        y = horizon + 12 * row**1.5
        pen.line((0, y, width, y), fill=TILE, width=2)
    for part in CLUTTER[: rng.integers(1, len(CLUTTER) + 1)]:
        _draw_clutter(pen, part, horizon, rng)
    pen.ellipse((pose.x - 32, pose.y - 8, pose.x + 32, pose.y + 6), fill=SHADOW)
    return canvas


def _draw_clutter(pen: ImageDraw.ImageDraw, part: int, horizon: float, rng: np.random.Generator) -> None:
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
    else:  # a distant person
        pen.ellipse((x - 5, base - 60, x + 5, base - 48), fill=part)
        pen.polygon([(x - 9, base - 46), (x + 9, base - 46), (x + 6, base), (x - 6, base)], fill=part)


def draw_occluder(canvas: Image.Image, camera: Camera, rng: np.random.Generator) -> None:
    """Perhaps draw an object in front of the person: a counter, a post, or a leaf from the side."""
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
    """Draw the relative light, float32 [H, W] around 1: a fall-off in a direction, and soft patches of
    shade.
    """
    height, width = shape
    angle, strength = rng.uniform(0, 2 * pi), camera.gradient * rng.uniform(0.3, 1.0)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(sin(angle) * strength)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * np.float32(cos(angle) * strength)
    patches = rng.normal(1.0, 0.10, (6, 3)).astype(np.float32)
    soft = np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC))
    return (1 + x + y) * soft * np.float32(rng.uniform(0.8, 1.2))


# The image: part ids -> reflectances -> light -> optics.


# Of each part: the attribute that has its reflectance, and its relative light (folds and the far side are
# darker).
SHADES = {
    Part.SKIN: ("skin", 1.0),
    Part.SKIN_FAR: ("skin", 0.74),
    Part.NECK: ("skin", 0.82),
    Part.EYES: ("skin", 0.3),
    Part.HAIR: ("hair", 1.0),
    Part.LOWER: ("lower", 1.0),
    Part.LOWER_FAR: ("lower", 0.68),
    Part.LOWER_FOLD: ("lower", 0.8),
    Part.SHOES: ("shoes", 0.9),
    Part.SHOES_FAR: ("shoes", 0.65),
    Part.INNER: ("inner", 0.9),
    Part.BAG: ("bag", 0.95),
    Part.STRAP: ("bag", 0.62),
    Part.HAT: ("hat", 1.0),
    Part.BRIM: ("hat", 0.72),
    Part.SCARF: ("scarf", 1.0),
    Part.SCARF_END: ("scarf", 0.84),
    Part.UPPER: ("upper", 1.0),
    Part.SLEEVE: ("upper", 0.86),
    Part.SLEEVE_FAR: ("upper", 0.66),
    Part.HEM: ("upper", 0.6),
}


def render(person: Person, camera: Camera, number: int) -> np.ndarray:
    """Image `number` of a person by a camera: uint8, [64, 32, 3] visible, [64, 32] infrared."""
    rng = generator(RENDERER_VERSION, Stream.IMAGE, person.number, camera.number, number)
    pose = draw_pose(camera, rng)
    parts = draw_surroundings(camera, pose, rng)
    parts = draw_person(parts, person.shape, pose)
    draw_occluder(parts, camera, rng)
    table = _reflectances(person.materials if camera.infrared else person.colours, camera, rng)
    light = light_field(camera, (HEIGHT, WIDTH), rng)
    light *= 1 + _coverage(parts) * _roundness(pose, rng)
    image = _pixels(parts, table) * light[:, :, None]
    return _with_optics(image, camera, rng)


def encode(image: np.ndarray) -> bytes:
    """PNG bytes. At 64x32, fast compression gives files as small as slow compression."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _reflectances(person: Colours | Materials, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Reflectance of each part id, uint8 [256, 3], or [256, 1] in infrared; surroundings vary randomly."""
    channels = 1 if camera.infrared else 3
    table = np.zeros((256, channels))
    for part, colour in enumerate(camera.surroundings, start=1):
        table[part] = colour[:channels]
    for part in CLUTTER:
        table[part] = rng.uniform(25, 215) + rng.normal(0, 25, channels)
    table[OCCLUDER] = rng.uniform(30, 200) + rng.normal(0, 20, channels)
    table[OCCLUDER_EDGE] = table[OCCLUDER] * 0.7
    table *= rng.uniform(0.75, 1.25)
    for part, (name, shade) in SHADES.items():
        table[part] = np.asarray(getattr(person, name)) * shade
    for part in (Part.UPPER, Part.SLEEVE, Part.SLEEVE_FAR):
        table[part + SECOND] = np.asarray(person.second) * SHADES[part][1]
    return np.clip(table, 0, 255).astype(np.uint8)


def _pixels(parts: Image.Image, table: np.ndarray) -> np.ndarray:
    """Look up every part and reduce to the final size, float32 [H, W, C]."""
    if table.shape[1] == 1:
        return np.asarray(parts.point(table[:, 0].tolist()).reduce(OVERSAMPLING), np.float32)[:, :, None]
    indexed = Image.frombuffer("P", parts.size, parts.tobytes(), "raw", "P", 0, 1)
    indexed.putpalette(table.tobytes())
    return np.asarray(indexed.convert("RGB").reduce(OVERSAMPLING), np.float32)


def _coverage(parts: Image.Image) -> np.ndarray:
    """Fraction of each pixel that the person covers, float32 [H, W] in 0..1."""
    mask = parts.point([255 if part >= BODY else 0 for part in range(256)])
    return np.asarray(mask.reduce(OVERSAMPLING), np.float32) / 255


def _roundness(pose: Pose, rng: np.random.Generator) -> np.ndarray:
    """Relative light on a round body, lit from one side and darker at its edges: float32 [1, W] around 0."""
    across = (np.arange(WIDTH, dtype=np.float32) + 0.5 - pose.x / OVERSAMPLING) / (
        0.16 * pose.scale / OVERSAMPLING
    )
    return np.clip(0.06 + rng.uniform(-0.16, 0.16) * across - 0.16 * across**2, -0.3, 0.3)[None, :]


def _with_optics(image: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Apply the optics of the camera: white balance, blur, gamma, noise; uint8."""
    if not camera.infrared:
        image = image * (np.asarray(camera.tint, np.float32) + rng.normal(0, 0.05, 3).astype(np.float32))
    image = _blurred(image, rng.uniform(*camera.blur))
    image = 255 * np.clip(image / 255, 0, 1) ** np.float32(rng.uniform(*camera.gamma))
    image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(*camera.noise))
    image = np.clip(image, 0, 255).astype(np.uint8)
    return image[:, :, 0] if camera.infrared else image


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Three-tap binomial-like blur along both axes, of variance sigma^2 (sigma up to 1 pixel or so)."""
    weight = np.float32(min(sigma**2 / 2, 1 / 3))
    for axis in (0, 1):
        ends = np.concatenate([image.take([0], axis), image, image.take([-1], axis)], axis)
        low, high = (slice(0, -2), slice(2, None))
        window = (slice(None),) * axis
        image = (1 - 2 * weight) * image + weight * (ends[(*window, low)] + ends[(*window, high)])
    return image
