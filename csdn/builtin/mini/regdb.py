"""RegDB in small: 32 people, a visible and a thermal camera, ten trials of 16 training and 16 test people."""

from __future__ import annotations

from collections.abc import Iterator

from csdn.builtin.mini.pictures import lines, picture
from csdn.randomness import generator

FIRST_PERSON = 30_000
PEOPLE = range(1, 33)
SHOTS = 4  # of each person by each camera
TRIALS = 10
LETTERS = {"Visible": "v", "Thermal": "t"}


def regdb_files() -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file."""
    for trial in range(1, TRIALS + 1):
        order = (generator(FIRST_PERSON, trial).permutation(len(PEOPLE)) + 1).tolist()
        half = len(order) // 2
        for side, people in (("train", sorted(order[:half])), ("test", sorted(order[half:]))):
            for folder in LETTERS:
                rows = [
                    f"{_path(folder, person, shot)} {label}"
                    for label, person in enumerate(people)
                    for shot in range(1, SHOTS + 1)
                ]
                yield f"idx/{side}_{folder.lower()}_{trial}.txt", lines(rows)
    for person in PEOPLE:
        for folder in LETTERS:
            for shot in range(1, SHOTS + 1):
                content = picture(FIRST_PERSON + person, folder == "Thermal", 0, shot, "BMP")
                yield _path(folder, person, shot), content


def _path(folder: str, person: int, shot: int) -> str:
    return f"{folder}/{person}/person_{LETTERS[folder]}_{shot:05d}_{person}.bmp"
