"""Benchmarks as folders of empty files: what listing them needs, and a few lines to spoil."""

from __future__ import annotations

from pathlib import Path

from make_images import write

SYSU_LISTS = {"train": "1,2", "val": "3", "test": "5,12"}
SYSU_PEOPLE = (1, 2, 3, 5, 12)
REGDB_PEOPLE = (1, 2, 3, 4)


def write_text(path: Path, text: str) -> Path:
    return write(path, text.encode())


def make_sysu(root: Path, images: int = 2) -> Path:
    """Five people before six cameras; person 5 is not seen by camera 1."""
    for name, people in SYSU_LISTS.items():
        write_text(root / f"exp/{name}_id.txt", people + "\n")
    for person in SYSU_PEOPLE:
        for camera in range(1, 7):
            for number in range(1, images + 1):
                if (person, camera) != (5, 1):
                    write(root / f"cam{camera}/{person:04d}/{number:04d}.jpg", b"")
    return root


def regdb_path(kind: str, person: int, number: int) -> str:
    return f"{kind}/{person}/female_front_{kind[0].lower()}_{number:05d}_{person}.bmp"


def make_regdb(root: Path, images: int = 2) -> Path:
    """Four people; in trial t person 1 + t % 4 and the next are tested."""
    for trial in range(1, 11):
        test = {1 + trial % 4, 1 + (trial + 1) % 4}
        for split, people in (("train", sorted({*REGDB_PEOPLE} - test)), ("test", sorted(test))):
            for kind in ("Visible", "Thermal"):
                lines = [
                    f"{regdb_path(kind, person, number)} {label}\n"
                    for label, person in enumerate(people)
                    for number in range(images)
                ]
                write_text(root / f"idx/{split}_{kind.lower()}_{trial}.txt", "".join(lines))
    for kind in ("Visible", "Thermal"):
        for person in REGDB_PEOPLE:
            for number in range(images):
                write(root / regdb_path(kind, person, number), b"")
    return root


def make_llcm(root: Path) -> Path:
    """People 3 and 8 to train on, 4 and 20 to test with, the latter before all cameras."""
    write_text(root / "idx/test_id.txt", "20,4\n")
    for kind in ("vis", "nir"):
        lines = []
        for label, person in enumerate((3, 8)):
            for camera in (1, 7):
                path = f"{kind}/{person:04d}/{person:04d}_c{camera:02d}_s185535_f7010_{kind}.jpg"
                write(root / path, b"")
                lines.append(f"{path} {label}\n")
        write_text(root / f"idx/train_{kind}.txt", "".join(lines))
        for camera in range(1, 10):
            for person in (4, 20):
                if kind == "vis" or camera != 3:
                    write(root / f"test_{kind}/cam{camera}/{person:04d}/a_{camera}.jpg", b"")
    return root


MAKERS = {"sysu": make_sysu, "regdb": make_regdb, "llcm": make_llcm}
