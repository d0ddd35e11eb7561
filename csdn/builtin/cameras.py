"""The six built-in cameras: where they look, what stands around, and what their optics do to an image.

Every image draws its own pose, crop, occluder, clutter and light (csdn.builtin.scene); the camera sets the
ranges. This nuisance is what keeps the task honest: without it raw pixels would identify people.
"""

from __future__ import annotations

from typing import NamedTuple

RGB = tuple[int, int, int]


class Camera(NamedTuple):
    """A place and a device. Ranges are (low, high) of a uniform draw."""

    number: int  # part of every draw
    name: str
    infrared: bool
    yaws: tuple[float, ...]  # degrees from which people are mostly seen
    spread: float  # standard deviation around them, degrees
    scale: tuple[float, float]  # canvas pixels of an average person's height
    horizon: float  # where the floor begins, share of the frame's height
    panel: int  # breadth of the wall's panels, canvas pixels
    surroundings: tuple[RGB, ...]  # reflectance of csdn.builtin.scene's WALL..SHADOW, 0..255
    occlusion: float  # chance of something standing in front
    gradient: float  # strength of the light's fall-off
    gamma: tuple[float, float]
    tint: tuple[float, float, float]
    blur: tuple[float, float]  # standard deviation, pixels
    noise: tuple[float, float]  # standard deviation, 0..255


def _palette(colours: str) -> tuple[RGB, ...]:
    """Colours written as rrggbb, separated by blanks."""
    return tuple(tuple(bytes.fromhex(colour)) for colour in colours.split())


def _greys(*values: int) -> tuple[RGB, ...]:
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
        surroundings=_palette("c4baa8 847a6e b4a894 62564a 6e8496 746a5f 3e3934"),
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
        surroundings=_palette("96a0a8 606870 848e98 464e58 3e4c5c 545c64 2e3238"),
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
        surroundings=_palette("acc4cc 788e62 948070 5c6c48 705446 6a8056 3a482e"),
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
        surroundings=_palette("7c7870 565452 a08e54 403e3c 303236 64605a 242322"),
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
        surroundings=_greys(70, 96, 58, 44, 30, 84, 40),
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
        surroundings=_greys(104, 72, 120, 60, 46, 62, 36),
        occlusion=0.3,
        gradient=0.50,
        gamma=(0.8, 1.4),
        tint=(1.0, 1.0, 1.0),
        blur=(0.4, 1.1),
        noise=(6, 16),
    ),
)


# Where the small CLIP's pictures come from: well lit, sharp, unobstructed. The six cameras are new to it.
PHOTOGRAPHERS = (
    Camera(
        number=6,
        name="street photo",
        infrared=False,
        yaws=(0.0, 45.0, -45.0, 90.0, -90.0, 180.0),
        spread=25.0,
        scale=(152, 180),
        horizon=0.68,
        panel=48,
        surroundings=_palette("aeb4b8 8c8880 988c80 6a665e 7c8890 807c74 4a4844"),
        occlusion=0.05,
        gradient=0.15,
        gamma=(0.85, 1.15),
        tint=(1.0, 1.0, 1.0),
        blur=(0.0, 0.4),
        noise=(0, 4),
    ),
    Camera(
        number=7,
        name="infrared photo",
        infrared=True,
        yaws=(0.0, 45.0, -45.0, 90.0, -90.0, 180.0),
        spread=25.0,
        scale=(152, 180),
        horizon=0.68,
        panel=40,
        surroundings=_greys(80, 64, 92, 44, 38, 70, 36),
        occlusion=0.05,
        gradient=0.2,
        gamma=(0.9, 1.2),
        tint=(1.0, 1.0, 1.0),
        blur=(0.0, 0.5),
        noise=(1, 6),
    ),
)


def cameras_of(infrared: bool, cameras: tuple[Camera, ...] = CAMERAS) -> list[Camera]:
    """Those of one modality."""
    return [camera for camera in cameras if camera.infrared == infrared]
