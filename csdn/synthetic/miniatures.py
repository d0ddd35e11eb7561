"""One picture of a built-in person by a built-in camera, as the bytes of an image file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from csdn.data.rng import generator
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_folder
from csdn.synthetic import people as builtin_people
from csdn.synthetic.rendering import cameras_of, render


def picture(number: int, infrared: bool, camera: int, shot: int, kind: str) -> bytes:
    """Picture `shot` of the person `number`; `camera` counts from 0 and repeats after the built-in ones.

    kind: Pillow's name of the format, "JPEG" or "BMP".
    """
    built_in = cameras_of(infrared)
    image = render(builtin_people.person(number), built_in[camera % len(built_in)], 100 * camera + shot)
    buffer = io.BytesIO()
    # Grey pictures are stored as colour pictures, as the benchmarks do.
    Image.fromarray(image).convert("RGB").save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def lines(rows: list[str]) -> bytes:
    """A text file."""
    return "".join(f"{row}\n" for row in rows).encode()


# SYSU-MM01 in small: 18 + 6 people to train on and 8 to test, cameras 1, 2, 4, 5 visible, 3 and 6 infrared.
#
# Some people are missing in some cameras, as in the real one; nobody indoors (cameras 1 and 2) means queries
# without a match in the indoor search.


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
    """How many pictures of the person this camera has; 0: no folder."""
    if (camera in (1, 2) and person % 3 == 0) or (camera == 3 and person % 7 == 0):
        return 0
    if camera in INFRARED:
        return 4
    return GALLERY_SHOTS if person in SYSU_TEST else 2


def _permutations() -> bytes:
    """A cell per camera of cells per person, trials x pictures, each row a permutation."""
    # Imported here: the stages read miniatures, they never write one.
    from scipy.io import savemat

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
    # The header tells the time and the machine; without them the same bytes come out each time.
    return b"MATLAB 5.0 MAT-file, miniature of SYSU-MM01".ljust(116) + buffer.getvalue()[116:]


# RegDB in small: 32 people, a visible and a thermal camera, ten trials of 16 training and 16 test people.


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
        for side, people in (("train", sorted(order[:half])), ("test", sorted(order[half:]))):
            for folder in LETTERS:
                rows = [
                    f"{_path(folder, person, shot)} {label}"
                    for label, person in enumerate(people)
                    for shot in range(1, REGDB_SHOTS + 1)
                ]
                yield f"idx/{side}_{folder.lower()}_{trial}.txt", lines(rows)
    for person in REGDB_PEOPLE:
        for folder in LETTERS:
            for shot in range(1, REGDB_SHOTS + 1):
                content = picture(REGDB_FIRST_PERSON + person, folder == "Thermal", 0, shot, "BMP")
                yield _path(folder, person, shot), content


def _path(folder: str, person: int, shot: int) -> str:
    return f"{folder}/{person}/person_{LETTERS[folder]}_{shot:05d}_{person}.bmp"


# LLCM in small: 24 people to train on and 8 to test, nine visible and eight near-infrared cameras.
#
# A person is seen by a few of the cameras only. Cameras 1, 2 and 4 to 9 see both ways, each under one number.


LLCM_FIRST_PERSON = 40_000
LLCM_PEOPLE = range(1, 33)
LLCM_TEST = tuple(person for person in LLCM_PEOPLE if person % 4 == 0)
LLCM_TRAIN = tuple(person for person in LLCM_PEOPLE if person not in LLCM_TEST)
LLCM_CAMERAS = {"vis": (1, 2, 3, 4, 5, 6, 7, 8, 9), "nir": (1, 2, 4, 5, 6, 7, 8, 9)}
LLCM_SHOTS = 2  # of each person by each camera that sees the person


def llcm_files() -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file."""
    yield "idx/test_id.txt", lines([",".join(map(str, LLCM_TEST))])
    for kind in LLCM_CAMERAS:
        for side, people in (("train", LLCM_TRAIN), ("test", LLCM_TEST)):
            rows = []
            for label, person in enumerate(people):
                for path, content in _pictures(kind, side, person):
                    rows.append(f"{path} {label}")
                    yield path, content
            yield f"idx/{side}_{kind}.txt", lines(rows)


def _pictures(kind: str, side: str, person: int) -> Iterator[tuple[str, bytes]]:
    for camera in _cameras(kind, person):
        for shot in range(1, LLCM_SHOTS + 1):
            name = f"{person:04d}_c{camera:02d}_s{100 * camera + shot:06d}_f{shot:04d}_{kind}.jpg"
            folder = f"test_{kind}/cam{camera}" if side == "test" else kind
            content = picture(LLCM_FIRST_PERSON + person, kind == "nir", camera - 1, shot, "JPEG")
            yield f"{folder}/{person:04d}/{name}", content


def _cameras(kind: str, person: int) -> list[int]:
    """The three cameras of a kind that see the person; eight people in a row meet all of them."""
    return sorted({LLCM_CAMERAS[kind][(person // 4 + step) % len(LLCM_CAMERAS[kind])] for step in (0, 1, 4)})


# Miniatures of the public benchmarks: built-in people in the exact folders and lists of the real ones.
#
# They show that a layout, a protocol and the way from folder to figures work; their figures say nothing
# of the benchmarks. The same call writes the same bytes.


# Path below the root and content of every file.
MINIATURES: dict[str, Callable[[], Iterator[tuple[str, bytes]]]] = {
    "sysu": sysu_files,
    "regdb": regdb_files,
    "llcm": llcm_files,
}


def write_miniature(name: str, out: str | Path) -> int:
    """Write a miniature of the benchmark `name` to the folder `out`, whole or not at all; returns its files.

    Raises UserError for an unknown benchmark and for a folder that holds something already.
    """
    if name not in MINIATURES:
        raise UserError(f"no benchmark is called {name!r}; there are: {', '.join(MINIATURES)}")
    out = Path(out).resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; name another, nothing was written")
    count = 0
    with atomic_folder(out) as folder:
        for path, data in MINIATURES[name]():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            count += 1
    return count
