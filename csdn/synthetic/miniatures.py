"""Miniatures of the public benchmarks: synthetic people in exactly the folders and lists of the real
benchmarks.

They test that a layout, a protocol, and the path from folder to figures work; their figures say nothing about
the benchmarks. The same call writes the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from csdn.data.rng import generator
from csdn.runtime.errors import UserError
from csdn.synthetic import people as builtin_people
from csdn.synthetic.rendering import cameras_of, render
from csdn.synthetic.sets import write_files

# SYSU-MM01: 18 + 6 people to train on and 8 to test, cameras 1, 2, 4, 5 visible, 3 and 6 infrared.
#
# As in the real one, some people are missing in some cameras; if somebody is in neither indoor camera (1 and
# 2), the indoor search has queries without a match.


SYSU_FIRST_PERSON = 20_000
SYSU_PEOPLE = range(1, 33)
SYSU_TEST = tuple(person for person in SYSU_PEOPLE if person % 4 == 2)
VALIDATION = tuple(person for person in SYSU_PEOPLE if person % 4 == 3)[:6]
SYSU_TRAIN = tuple(person for person in SYSU_PEOPLE if person not in SYSU_TEST + VALIDATION)
INFRARED = (3, 6)
SYSU_CAMERAS = {1: 0, 2: 1, 3: 0, 4: 2, 5: 3, 6: 1}  # number -> which built-in camera of its modality
SYSU_TRIALS = 10
GALLERY_SHOTS = 11  # of a test person by a visible camera: one more than ten-shot draws


def sysu_files() -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file."""
    for name, people in (("train", SYSU_TRAIN), ("val", VALIDATION), ("test", SYSU_TEST)):
        yield f"exp/{name}_id.txt", lines([",".join(map(str, people))])
    yield "exp/rand_perm_cam.mat", _permutations()
    for person in SYSU_PEOPLE:
        for camera, built_in in SYSU_CAMERAS.items():
            for shot in range(1, shots(person, camera) + 1):
                content = picture(SYSU_FIRST_PERSON + person, camera in INFRARED, built_in, shot, "JPEG")
                yield f"cam{camera}/{person:04d}/{shot:04d}.jpg", content


def shots(person: int, camera: int) -> int:
    """The number of images of the person by this camera; 0: there is no folder."""
    if (camera in (1, 2) and person % 3 == 0) or (camera == 3 and person % 7 == 0):
        return 0
    if camera in INFRARED:
        return 4
    return GALLERY_SHOTS if person in SYSU_TEST else 2


def _permutations() -> bytes:
    """A cell per camera of cells per person, trials x pictures, each row a permutation."""
    from scipy.io import savemat  # slow to import, and the stages never write a miniature

    cameras = np.empty((len(SYSU_CAMERAS), 1), object)
    for camera in SYSU_CAMERAS:
        cells = np.empty((max(SYSU_PEOPLE), 1), object)
        for person in SYSU_PEOPLE:
            rng = generator(SYSU_FIRST_PERSON, camera, person)
            rows = [rng.permutation(shots(person, camera)) + 1 for _ in range(SYSU_TRIALS)]
            cells[person - 1, 0] = np.array(rows, np.uint8)
        cameras[camera - 1, 0] = cells
    buffer = io.BytesIO()
    savemat(buffer, {"rand_perm_cam": cameras}, do_compression=True)
    # The header of scipy has the time and the machine; this one makes the bytes reproducible.
    return b"MATLAB 5.0 MAT-file, miniature of SYSU-MM01".ljust(116) + buffer.getvalue()[116:]


# RegDB: 32 people, a visible and a thermal camera, ten trials of 16 training and 16 test people.


REGDB_FIRST_PERSON = 30_000
REGDB_PEOPLE = range(1, 33)
REGDB_SHOTS = 4  # of each person by each camera
REGDB_TRIALS = 10
LETTERS = {"Visible": "v", "Thermal": "t"}


def regdb_files() -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file."""
    for trial in range(1, REGDB_TRIALS + 1):
        order = (generator(REGDB_FIRST_PERSON, trial).permutation(len(REGDB_PEOPLE)) + 1).tolist()
        half = len(order) // 2
        for split, people in (("train", sorted(order[:half])), ("test", sorted(order[half:]))):
            for folder in LETTERS:
                rows = [
                    f"{_path(folder, person, shot)} {label}"
                    for label, person in enumerate(people)
                    for shot in range(1, REGDB_SHOTS + 1)
                ]
                yield f"idx/{split}_{folder.lower()}_{trial}.txt", lines(rows)
    for person in REGDB_PEOPLE:
        for folder in LETTERS:
            for shot in range(1, REGDB_SHOTS + 1):
                content = picture(REGDB_FIRST_PERSON + person, folder == "Thermal", 0, shot, "BMP")
                yield _path(folder, person, shot), content


def _path(folder: str, person: int, shot: int) -> str:
    return f"{folder}/{person}/person_{LETTERS[folder]}_{shot:05d}_{person}.bmp"


# LLCM: 24 people to train on and 8 to test, nine visible and eight near-infrared cameras.
#
# Each person appears in a few of the cameras. Cameras 1, 2 and 4 to 9 exist in both modalities, under the
# same number.


LLCM_FIRST_PERSON = 40_000
LLCM_PEOPLE = range(1, 33)
LLCM_TEST = tuple(person for person in LLCM_PEOPLE if person % 4 == 0)
LLCM_TRAIN = tuple(person for person in LLCM_PEOPLE if person not in LLCM_TEST)
LLCM_CAMERAS = {"vis": (1, 2, 3, 4, 5, 6, 7, 8, 9), "nir": (1, 2, 4, 5, 6, 7, 8, 9)}
LLCM_SHOTS = 2  # of each person by each of the person's cameras


def llcm_files() -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file."""
    yield "idx/test_id.txt", lines([",".join(map(str, LLCM_TEST))])
    for kind in LLCM_CAMERAS:
        for split, people in (("train", LLCM_TRAIN), ("test", LLCM_TEST)):
            rows = []
            for label, person in enumerate(people):
                for path, content in _pictures(kind, split, person):
                    rows.append(f"{path} {label}")
                    yield path, content
            yield f"idx/{split}_{kind}.txt", lines(rows)


def _pictures(kind: str, split: str, person: int) -> Iterator[tuple[str, bytes]]:
    for camera in _cameras(kind, person):
        for shot in range(1, LLCM_SHOTS + 1):
            name = f"{person:04d}_c{camera:02d}_s{100 * camera + shot:06d}_f{shot:04d}_{kind}.jpg"
            folder = f"test_{kind}/cam{camera}" if split == "test" else kind
            content = picture(LLCM_FIRST_PERSON + person, kind == "nir", camera - 1, shot, "JPEG")
            yield f"{folder}/{person:04d}/{name}", content


def _cameras(kind: str, person: int) -> list[int]:
    """The person's three cameras of a kind; any eight consecutive people together appear in all of them."""
    return sorted({LLCM_CAMERAS[kind][(person // 4 + step) % len(LLCM_CAMERAS[kind])] for step in (0, 1, 4)})


# What they share.


def picture(number: int, infrared: bool, camera: int, shot: int, kind: str) -> bytes:
    """The bytes of image `shot` of a person; kind: Pillow's name of the format, "JPEG" or "BMP".

    `camera` counts from 0; beyond the last synthetic camera of the modality the first follows again.
    """
    built_in = cameras_of(infrared)
    image = render(builtin_people.person(number), built_in[camera % len(built_in)], 100 * camera + shot)
    buffer = io.BytesIO()
    # The benchmarks store grey images as colour images.
    Image.fromarray(image).convert("RGB").save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def lines(rows: list[str]) -> bytes:
    """A text file."""
    return "".join(f"{row}\n" for row in rows).encode()


# Writing them.


# Path below the root and content of every file.
MINIATURES: dict[str, Callable[[], Iterator[tuple[str, bytes]]]] = {
    "sysu": sysu_files,
    "regdb": regdb_files,
    "llcm": llcm_files,
}


def write_miniature(name: str, out: str | Path) -> int:
    """Write a miniature of the benchmark `name` to the folder `out`, completely or not at all; returns the
    number of files.

    Raises UserError for an unknown benchmark, and if `out` exists and is not an empty folder.
    """
    if name not in MINIATURES:
        raise UserError(f"no benchmark is called {name!r}; there are: {', '.join(MINIATURES)}")
    return write_files(MINIATURES[name](), out)
