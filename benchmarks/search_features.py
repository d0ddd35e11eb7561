"""The features that benchmarks/search.py searches: rendered people, embedded by the demo's model, kept in a
cache folder.

A gallery has 8 visible images of each person (2 by each of 4 cameras). Queries are images that no gallery
has: by the infrared cameras, and further images by the visible ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from csdn.runtime.console import progress
from csdn.runtime.files import atomic_write
from csdn.runtime.process import available_cores
from csdn.search.embedder import Embedder
from csdn.synthetic.people import FRESH, person
from csdn.synthetic.rendering import cameras_of, render

SHOTS = 2  # images of a person by each visible camera in the gallery
QUERIES = 1000  # of each modality, each of another person
PART = 10_000  # images of a file in the cache
MIXED = 0.3, 0.7  # share of the first of the two images of a distractor
VISIBLE, INFRARED = cameras_of(infrared=False), cameras_of(infrared=True)
OF_PERSON = SHOTS * len(VISIBLE)

Shot = tuple[int, int, bool, int]  # person, number of the camera in its modality, infrared, number


class Features:
    """Features float16 of unit length: of galleries of rendered people, and of queries."""

    def __init__(self, embedder: Embedder, cache: Path) -> None:
        self.embedder, self.folder = embedder, cache / embedder.model_hash[:16]
        self.folder.mkdir(parents=True, exist_ok=True)

    def rendered(self, count: int) -> np.ndarray:
        """[count, D] of the first images of the gallery; `count` is a multiple of PART."""
        parts = [
            self._kept(f"gallery-{start:07}", gallery_shots(start, PART)) for start in range(0, count, PART)
        ]
        return np.concatenate(parts)

    def queries(self, modality: str) -> np.ndarray:
        """[QUERIES, D]: new images of people who are among the first 100,000 images of the gallery."""
        return self._kept(f"queries-{modality}", query_shots(modality == "infrared"))

    def _kept(self, name: str, shots: list[Shot]) -> np.ndarray:
        """The features of the shots, from the cache, or computed and put there."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            features = np.empty((len(shots), self.embedder.dimension), np.float16)
            with ProcessPoolExecutor(available_cores()) as pool, progress("search", name, "images") as report:
                for start, pictures in _batches(pool, shots):
                    modality = "infrared" if shots[start][2] else "visible"
                    features[start : start + len(pictures)] = self.embedder.embed(pictures, modality)
                    report(start + len(pictures), len(shots))
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.save(file, features)
        return np.load(path)


def gallery_shots(start: int, count: int) -> list[Shot]:
    shots = []
    for image in range(start, start + count):
        who, shot = divmod(image, OF_PERSON)
        number, camera = divmod(shot, len(VISIBLE))
        shots.append((FRESH.start + who, camera, False, number + 1))
    return shots


def query_shots(infrared: bool) -> list[Shot]:
    cameras = INFRARED if infrared else VISIBLE
    people = 100_000 // OF_PERSON
    return [
        (FRESH.start + number * people // QUERIES, number % len(cameras), infrared, SHOTS + 1)
        for number in range(QUERIES)
    ]


def _batches(pool: ProcessPoolExecutor, shots: list[Shot]) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first, pictures uint8 [n, 3, H, W]) of the shots, rendered by processes."""
    step = 250
    chunks = [shots[start : start + step] for start in range(0, len(shots), step)]
    for number, pictures in enumerate(pool.map(pictures_of, chunks)):
        yield number * step, pictures


def pictures_of(shots: list[Shot]) -> np.ndarray:
    """uint8 [n, 3, H, W] at the renderer's size, which is the size of the demo's model."""
    pictures = []
    for who, camera, infrared, number in shots:
        image = render(person(who), (INFRARED if infrared else VISIBLE)[camera], number)
        pictures.append(np.repeat(image[None], 3, axis=0) if infrared else image.transpose(2, 0, 1))
    return np.stack(pictures)


def with_distractors(rendered: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Blocks of together `count` features: the rendered ones, then mixtures of two of different people."""
    yield rendered
    rng = np.random.default_rng(0)
    for start in range(len(rendered), count, PART):
        size = min(PART, count - start)
        one = rng.integers(0, len(rendered), size)
        # OF_PERSON images or more further on, around the end: another person.
        other = (one + rng.integers(OF_PERSON, len(rendered) - OF_PERSON, size)) % len(rendered)
        share = rng.uniform(*MIXED, (size, 1)).astype(np.float32)
        mixed = share * rendered[one] + (1 - share) * rendered[other]
        yield mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
