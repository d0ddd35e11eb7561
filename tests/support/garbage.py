"""Drops that no model should learn from: the built-in people under each other's names, or no people at all.

Folders in the layout `cameras`, as a broken export, or a camera that fails, would leave them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from make_images import encoded

from csdn.synthetic.sets import MARKER, PeopleSet, images_of, png


def write_shuffled(folder: Path, people: PeopleSet, seed: int = 0) -> Path:
    """A drop in which every image carries the label of a person drawn at random; returns its folder."""
    draws = np.random.default_rng(seed)
    for image in images_of(people):
        label = f"p{people.first + draws.integers(people.people):04d}"
        name = f"{image.label}-{image.number:04d}.png"
        _write(folder / image.modality / image.camera.name / label / name, png(image))
    return _complete(folder)


def write_noise(folder: Path, people: PeopleSet, seed: int = 0) -> Path:
    """A drop with the set's people, each of whose images is noise of its own; returns its folder."""
    draws = np.random.default_rng(seed)
    for image in images_of(people):
        _write(folder / image.path, encoded(draws.integers(0, 256, (64, 32, 3), dtype=np.uint8)))
    return _complete(folder)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _complete(folder: Path) -> Path:
    (folder / MARKER).touch()
    return folder
