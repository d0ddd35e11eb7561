"""LLCM in small: 24 people to train on and 8 to test, nine visible and eight near-infrared cameras.

A person is seen by a few of the cameras only. Cameras 1, 2 and 4 to 9 see both ways, each under one number.
"""

from __future__ import annotations

from collections.abc import Iterator

from csdn.builtin.mini.pictures import lines, picture

FIRST_PERSON = 40_000
PEOPLE = range(1, 33)
TEST = tuple(person for person in PEOPLE if person % 4 == 0)
TRAIN = tuple(person for person in PEOPLE if person not in TEST)
CAMERAS = {"vis": (1, 2, 3, 4, 5, 6, 7, 8, 9), "nir": (1, 2, 4, 5, 6, 7, 8, 9)}
SHOTS = 2  # of each person by each camera that sees the person


def llcm_files() -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file."""
    yield "idx/test_id.txt", lines([",".join(map(str, TEST))])
    for kind in CAMERAS:
        for side, people in (("train", TRAIN), ("test", TEST)):
            rows = []
            for label, person in enumerate(people):
                for path, content in _pictures(kind, side, person):
                    rows.append(f"{path} {label}")
                    yield path, content
            yield f"idx/{side}_{kind}.txt", lines(rows)


def _pictures(kind: str, side: str, person: int) -> Iterator[tuple[str, bytes]]:
    for camera in _cameras(kind, person):
        for shot in range(1, SHOTS + 1):
            name = f"{person:04d}_c{camera:02d}_s{100 * camera + shot:06d}_f{shot:04d}_{kind}.jpg"
            folder = f"test_{kind}/cam{camera}" if side == "test" else kind
            content = picture(FIRST_PERSON + person, kind == "nir", camera - 1, shot, "JPEG")
            yield f"{folder}/{person:04d}/{name}", content


def _cameras(kind: str, person: int) -> list[int]:
    """The three cameras of a kind that see the person; eight people in a row meet all of them."""
    return sorted({CAMERAS[kind][(person // 4 + step) % len(CAMERAS[kind])] for step in (0, 1, 4)})
