"""One image: part ids -> reflectances -> light -> optics; a function of (person, camera, image number)."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from csdn.builtin import scene
from csdn.builtin.cameras import Camera
from csdn.builtin.figure import draw_person
from csdn.builtin.people import RENDERER_VERSION, Colours, Materials, Person, Stream
from csdn.builtin.sketch import BODY, HEIGHT, OVERSAMPLING, SECOND, WIDTH, Part, Pose
from csdn.randomness import generator

# How much light a part gets compared with the garment it belongs to: folds and the far side lie in shade.
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
    pose = scene.draw_pose(camera, rng)
    parts = scene.draw_surroundings(camera, pose, rng)
    parts = draw_person(parts, person.shape, pose)
    scene.draw_occluder(parts, camera, rng)
    table = _reflectances(person.materials if camera.infrared else person.colours, camera, rng)
    light = scene.light_field(camera, (HEIGHT, WIDTH), rng)
    light *= 1 + _body_share(parts) * _roundness(pose, rng)
    image = _reduced(parts, table) * light[:, :, None]
    return _developed(image, camera, rng)


def three_channels(image: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, 3] -> [H, W, 3]."""
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)


def encode(image: np.ndarray) -> bytes:
    """PNG bytes: lossless, and at 64x32 fast compression costs nothing in size."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _reflectances(person: Colours | Materials, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Reflectance of each part id, uint8 [256, 3], or [256, 1] in infrared; what is no person's varies."""
    channels = 1 if camera.infrared else 3
    table = np.zeros((256, channels))
    for part, colour in enumerate(camera.surroundings, start=1):
        table[part] = colour[:channels]
    for part in scene.CLUTTER:
        table[part] = rng.uniform(25, 215) + rng.normal(0, 25, channels)
    table[scene.OCCLUDER] = rng.uniform(30, 200) + rng.normal(0, 20, channels)
    table[scene.OCCLUDER_EDGE] = table[scene.OCCLUDER] * 0.7
    table *= rng.uniform(0.75, 1.25)
    for part, (name, shade) in SHADES.items():
        table[part] = np.asarray(getattr(person, name)) * shade
    for part in (Part.UPPER, Part.SLEEVE, Part.SLEEVE_FAR):
        table[part + SECOND] = np.asarray(person.second) * SHADES[part][1]
    return np.clip(table, 0, 255).astype(np.uint8)


def _reduced(parts: Image.Image, table: np.ndarray) -> np.ndarray:
    """Look up every part and reduce to the final size, float32 [H, W, C]."""
    if table.shape[1] == 1:
        return np.asarray(parts.point(table[:, 0].tolist()).reduce(OVERSAMPLING), np.float32)[:, :, None]
    indexed = Image.frombuffer("P", parts.size, parts.tobytes(), "raw", "P", 0, 1)
    indexed.putpalette(table.tobytes())
    return np.asarray(indexed.convert("RGB").reduce(OVERSAMPLING), np.float32)


def _body_share(parts: Image.Image) -> np.ndarray:
    """Share of each pixel that the person covers, float32 [H, W] in 0..1."""
    mask = parts.point([255 if part >= BODY else 0 for part in range(256)])
    return np.asarray(mask.reduce(OVERSAMPLING), np.float32) / 255


def _roundness(pose: Pose, rng: np.random.Generator) -> np.ndarray:
    """A body is lit from one side and darker at its edges: relative light, float32 [1, W] around 0."""
    across = (np.arange(WIDTH, dtype=np.float32) + 0.5 - pose.x / OVERSAMPLING) / (
        0.16 * pose.scale / OVERSAMPLING
    )
    return np.clip(0.06 + rng.uniform(-0.16, 0.16) * across - 0.16 * across**2, -0.3, 0.3)[None, :]


def _developed(image: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """What the device makes of the light: white balance, blur, gamma, noise; uint8."""
    if not camera.infrared:
        image = image * (np.asarray(camera.tint, np.float32) + rng.normal(0, 0.05, 3).astype(np.float32))
    image = _blurred(image, rng.uniform(*camera.blur))
    image = 255 * np.clip(image / 255, 0, 1) ** np.float32(rng.uniform(*camera.gamma))
    image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(*camera.noise))
    image = np.clip(image, 0, 255).astype(np.uint8)
    return image[:, :, 0] if camera.infrared else image


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Three-tap binomial-like blur along both axes, of variance sigma^2 (sigma up to 1 pixel or so)."""
    side = np.float32(min(sigma**2 / 2, 1 / 3))
    for axis in (0, 1):
        ends = np.concatenate([image.take([0], axis), image, image.take([-1], axis)], axis)
        low, high = (slice(0, -2), slice(2, None))
        window = (slice(None),) * axis
        image = (1 - 2 * side) * image + side * (ends[(*window, low)] + ends[(*window, high)])
    return image
