"""Layout `sysu`: SYSU-MM01 as its authors publish it.

`cam1..cam6/<person>/<name>.jpg`, visible by cameras 1, 2, 4, 5, infrared by 3 and 6; `exp/train_id.txt`,
`exp/val_id.txt` (both for training) and `exp/test_id.txt`. Not every person appears in every camera.
`exp/rand_perm_cam.mat`, if it is there, has the galleries of the protocol `sysu_official`: for each camera
and person, the order in which each trial draws the images.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from csdn.data.catalog import ImageRecord, Modality
from csdn.ingest.sources.benchmark import TEST, TRAIN, BenchmarkSource, Found
from csdn.ingest.sources.tree import Files, Kind, kind_of, not_taken
from csdn.runtime.errors import UserError

TRAIN_LISTS = ("exp/train_id.txt", "exp/val_id.txt")
TEST_LIST = "exp/test_id.txt"
PERMUTATIONS = "exp/rand_perm_cam.mat"
VARIABLE = "rand_perm_cam"
CAMERAS = tuple(f"cam{number}" for number in range(1, 7))
INFRARED = ("cam3", "cam6")

_PATH = re.compile(r"(?P<camera>cam[1-6])/(?P<person>\d{1,9})/[^/]+", re.ASCII | re.IGNORECASE)
_CAMERA_FOLDER = re.compile(r"cam\d+/.*", re.ASCII | re.IGNORECASE)


class CameraPerson(NamedTuple):
    """The key of a folder: the images of one person by one camera."""

    camera: int
    person: int


class SysuSource(BenchmarkSource):
    layout = "sysu"
    lists = "exp"

    def find(self, files: Files) -> Iterator[Found]:
        splits = self._splits(files)
        folders: dict[CameraPerson, list[ImageRecord]] = defaultdict(list)
        for path in sorted({*files.entries, *files.refused}):
            match = _PATH.fullmatch(path)
            kind = kind_of(path)
            if kind == Kind.NO_IMAGE or not (match or _CAMERA_FOLDER.fullmatch(path)):
                continue
            if path in files.refused:
                yield path, files.refused[path]
            elif match is None:
                yield path, "not at camera/person/name"
            elif (person := int(match["person"])) in splits and kind == Kind.OTHER_IMAGE:
                yield path, not_taken(path)
            elif person in splits:
                camera = match["camera"].lower()
                modality = Modality.INFRARED if camera in INFRARED else Modality.VISIBLE
                record = self.record(files.entries[path], person, modality, camera, (splits[person],))
                folders[CameraPerson(int(camera[3:]), person)].append(record)
        self.check_cameras(files, CAMERAS, {f"cam{key.camera}" for key in folders})
        self.check_there(splits, {key.person for key in folders}, "exp/*_id.txt")
        yield from self._with_places(files, folders)

    def _splits(self, files: Files) -> dict[int, str]:
        train, val = (self.read_people(files, path) for path in TRAIN_LISTS)
        test = self.read_people(files, TEST_LIST)
        if both := sorted(set(train) & set(val)):
            raise UserError(f"{self.address}: {' and '.join(TRAIN_LISTS)}: person {both[0]} is listed twice")
        self.check_apart([*train, *val], test, "exp")
        return dict.fromkeys([*train, *val], TRAIN) | dict.fromkeys(test, TEST)

    def _with_places(
        self, files: Files, folders: dict[CameraPerson, list[ImageRecord]]
    ) -> Iterator[ImageRecord]:
        """The records; those of visible test images get their `places` in the authors' permutations."""
        if files.real_path(PERMUTATIONS) not in files.entries:
            for records in folders.values():
                yield from records
            return
        where = f"{self.address}: {PERMUTATIONS}"
        permutations = read_permutations(self.read_bytes(files, PERMUTATIONS), where)
        for key, records in folders.items():
            if records[0].splits == (TEST,) and records[0].modality == Modality.VISIBLE:
                trials = permutations.get(key, [])
                _check_size(where, key, trials, len(records))
                records = [
                    replace(record, places=tuple(trial.index(number) for trial in trials))
                    for number, record in enumerate(records, start=1)
                ]
            yield from records


def _check_size(where: str, key: CameraPerson, trials: Sequence[Sequence[int]], images: int) -> None:
    count = len(trials[0]) if trials else 0
    if count != images:
        raise UserError(
            f"{where}: orders {count} images of person {key.person} by camera {key.camera}, the folder "
            f"has {images}: one of them is of another copy. The protocol sysu works without the file"
        )


def read_permutations(data: bytes, where: str) -> dict[tuple[int, int], list[list[int]]]:
    """(camera, person), both from 1 -> for each trial the numbers of the images, from 1, in the order of
    drawing.

    data: a MATLAB 5 file (such files contain no code); where: its name in errors. Raises UserError where it
    is not readable, has other contents, or an order is not a permutation.
    """
    from scipy.io import loadmat  # slow to import, and worker processes only read images

    try:
        cameras = loadmat(io.BytesIO(data), variable_names=[VARIABLE])[VARIABLE]
        cells = {
            (camera, person): np.asarray(cell, dtype=np.int64)
            for camera, people in enumerate(cameras.ravel(), start=1)
            for person, cell in enumerate(people.ravel(), start=1)
        }
    except Exception as error:  # the parser raises all kinds of exceptions on other files
        raise UserError(
            f"{where}: not readable as {VARIABLE}, a cell per camera of cells per person: "
            f"{error or type(error).__name__}"
        ) from None
    return {key: _trials(cell, where, *key) for key, cell in cells.items() if cell.size}


def _trials(cell: np.ndarray[Any, Any], where: str, camera: int, person: int) -> list[list[int]]:
    """[trials, images] as lists, each a permutation of 1..images."""
    if cell.ndim != 2 or (np.sort(cell, axis=1) != np.arange(1, cell.shape[1] + 1)).any():
        raise UserError(
            f"{where}: camera {camera}, person {person}: a trial is no permutation of its images' numbers"
        )
    return cell.tolist()
