"""Cameras for the training images of the small CLIP: well lit, sharp, unobstructed. It sees no others."""

from __future__ import annotations

import numpy as np

from csdn.synthetic.rendering import Camera, greys, palette

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
        surroundings=palette("aeb4b8 8c8880 988c80 6a665e 7c8890 807c74 4a4844"),
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
        surroundings=greys(80, 64, 92, 44, 38, 70, 36),
        occlusion=0.05,
        gradient=0.2,
        gamma=(0.9, 1.2),
        tint=(1.0, 1.0, 1.0),
        blur=(0.0, 0.5),
        noise=(1, 6),
    ),
)


def three_channels(image: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, 3] -> [H, W, 3]."""
    return image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
