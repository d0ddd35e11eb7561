"""SYSU-MM01 in small: 18 + 6 people to train on and 8 to test, cameras 1, 2, 4, 5 visible, 3 and 6 infrared.

Some people are missing in some cameras, as in the real one; nobody indoors (cameras 1 and 2) means queries
without a match in the indoor search.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np

from csdn.builtin.mini.pictures import lines, picture
from csdn.randomness import generator

FIRST_PERSON = 20_000
PEOPLE = range(1, 33)
TEST = tuple(person for person in PEOPLE if person % 4 == 2)
VALIDATION = tuple(person for person in PEOPLE if person % 4 == 3)[:6]
TRAIN = tuple(person for person in PEOPLE if person not in TEST + VALIDATION)
INFRARED = (3, 6)
CAMERAS = {1: 0, 2: 1, 3: 0, 4: 2, 5: 3, 6: 1}  # number -> which built-in camera of its modality
TRIALS = 10
GALLERY_SHOTS = 11  # of a test person by a visible camera: one more than ten-shot draws


def sysu_files() -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file."""
    for name, people in (("train", TRAIN), ("val", VALIDATION), ("test", TEST)):
        yield f"exp/{name}_id.txt", lines([",".join(map(str, people))])
    yield "exp/rand_perm_cam.mat", _permutations()
    for person in PEOPLE:
        for camera, built_in in CAMERAS.items():
            for shot in range(1, shots(person, camera) + 1):
                content = picture(FIRST_PERSON + person, camera in INFRARED, built_in, shot, "JPEG")
                yield f"cam{camera}/{person:04d}/{shot:04d}.jpg", content


def shots(person: int, camera: int) -> int:
    """How many pictures of the person this camera has; 0: no folder."""
    if (camera in (1, 2) and person % 3 == 0) or (camera == 3 and person % 7 == 0):
        return 0
    if camera in INFRARED:
        return 4
    return GALLERY_SHOTS if person in TEST else 2


def _permutations() -> bytes:
    """A cell per camera of cells per person, trials x pictures, each row a permutation."""
    # Imported here: the stages read miniatures, they never write one.
    from scipy.io import savemat

    cameras = np.empty((len(CAMERAS), 1), object)
    for camera in CAMERAS:
        cells = np.empty((max(PEOPLE), 1), object)
        for person in PEOPLE:
            rng = generator(FIRST_PERSON, camera, person)
            rows = [rng.permutation(shots(person, camera)) + 1 for _ in range(TRIALS)]
            cells[person - 1, 0] = np.array(rows, np.uint8)
        cameras[camera - 1, 0] = cells
    buffer = io.BytesIO()
    savemat(buffer, {"rand_perm_cam": cameras}, do_compression=True)
    # The header tells the time and the machine; without them the same bytes come out each time.
    return b"MATLAB 5.0 MAT-file, miniature of SYSU-MM01".ljust(116) + buffer.getvalue()[116:]
