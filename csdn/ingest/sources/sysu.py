"""SYSU-MM01's `rand_perm_cam.mat`: for each camera and person, how the authors order the images per trial."""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.io import loadmat

from csdn.data.catalog import ImageRecord, Modality
from csdn.ingest.sources.benchmark import TEST, TRAIN, BenchmarkSource, Found
from csdn.ingest.sources.kinds import Kind, kind_of, not_taken
from csdn.ingest.sources.tree import Files
from csdn.runtime.errors import UserError

VARIABLE = "rand_perm_cam"


def read_permutations(data: bytes, where: str) -> dict[tuple[int, int], list[list[int]]]:
    """(camera, person), both from 1 -> for each trial the numbers of the images, from 1, in drawing order.

    `data` is a MATLAB 5 file (such files hold no code); `where` names it in errors. Raises UserError where it
    is not readable, holds something else, or an order is no permutation.
    """
    try:
        cameras = loadmat(io.BytesIO(data), variable_names=[VARIABLE])[VARIABLE]
        cells = {
            (camera, person): np.asarray(cell, dtype=np.int64)
            for camera, people in enumerate(cameras.ravel(), start=1)
            for person, cell in enumerate(people.ravel(), start=1)
        }
    except Exception as error:  # whatever a parser of a binary format meets in a file that is something else
        raise UserError(
            f"{where}: not readable as {VARIABLE}, a cell per camera of cells per person: "
            f"{error or type(error).__name__}"
        ) from None
    return {place: _trials(cell, where, *place) for place, cell in cells.items() if cell.size}


def _trials(cell: np.ndarray[Any, Any], where: str, camera: int, person: int) -> list[list[int]]:
    """[trials, images] as lists, each a permutation of 1..images."""
    if cell.ndim != 2 or (np.sort(cell, axis=1) != np.arange(1, cell.shape[1] + 1)).any():
        raise UserError(
            f"{where}: camera {camera}, person {person}: a trial is no permutation of its images' numbers"
        )
    return cell.tolist()


# Layout `sysu`: SYSU-MM01 as its authors publish it.
#
# `cam1..cam6/<person>/<name>.jpg`, visible by cameras 1, 2, 4, 5, infrared by 3 and 6; `exp/train_id.txt`,
# `exp/val_id.txt` (both are trained on) and `exp/test_id.txt`. A person need not be seen by every camera.
# `exp/rand_perm_cam.mat`, where it is there, gives the galleries of the protocol `sysu_official`.


TRAIN_LISTS = ("exp/train_id.txt", "exp/val_id.txt")
TEST_LIST = "exp/test_id.txt"
PERMUTATIONS = "exp/rand_perm_cam.mat"
CAMERAS = tuple(f"cam{number}" for number in range(1, 7))
INFRARED = ("cam3", "cam6")

_PATH = re.compile(r"(?P<camera>cam[1-6])/(?P<person>\d{1,9})/[^/]+", re.ASCII | re.IGNORECASE)
_CAMERA_FOLDER = re.compile(r"cam\d+/.*", re.ASCII | re.IGNORECASE)


class Place(NamedTuple):
    """A person's folder of one camera."""

    camera: int
    person: int


class SysuSource(BenchmarkSource):
    layout = "sysu"
    lists = "exp"

    def find(self, files: Files) -> Iterator[Found]:
        sides = self._sides(files)
        folders: dict[Place, list[ImageRecord]] = defaultdict(list)
        for path in sorted({*files.entries, *files.refused}):
            match = _PATH.fullmatch(path)
            kind = kind_of(path)
            if kind == Kind.NO_IMAGE or not (match or _CAMERA_FOLDER.fullmatch(path)):
                continue
            if path in files.refused:
                yield path, files.refused[path]
            elif match is None:
                yield path, "not at camera/person/name"
            elif (person := int(match["person"])) in sides and kind == Kind.OTHER_IMAGE:
                yield path, not_taken(path)
            elif person in sides:
                camera = match["camera"].lower()
                modality = Modality.INFRARED if camera in INFRARED else Modality.VISIBLE
                record = self.record(files.entries[path], person, modality, camera, (sides[person],))
                folders[Place(int(camera[3:]), person)].append(record)
        self.check_cameras(files, CAMERAS, {f"cam{place.camera}" for place in folders})
        self.check_there(sides, {place.person for place in folders}, "exp/*_id.txt")
        yield from self._with_places(files, folders)

    def _sides(self, files: Files) -> dict[int, str]:
        train, val = (self.read_people(files, path) for path in TRAIN_LISTS)
        test = self.read_people(files, TEST_LIST)
        if both := sorted(set(train) & set(val)):
            raise UserError(f"{self.address}: {' and '.join(TRAIN_LISTS)}: person {both[0]} is listed twice")
        self.check_apart([*train, *val], test, "exp")
        return dict.fromkeys([*train, *val], TRAIN) | dict.fromkeys(test, TEST)

    def _with_places(self, files: Files, folders: dict[Place, list[ImageRecord]]) -> Iterator[ImageRecord]:
        """The records, those of the galleries with their places in the authors' permutations."""
        if files.real_path(PERMUTATIONS) not in files.entries:
            for records in folders.values():
                yield from records
            return
        # Imported here: scipy takes long, and worker processes only read images.
        pass

        where = f"{self.address}: {PERMUTATIONS}"
        permutations = read_permutations(self.read_bytes(files, PERMUTATIONS), where)
        for place, records in folders.items():
            if records[0].sides == (TEST,) and records[0].modality == Modality.VISIBLE:
                trials = permutations.get(place)
                _check_size(where, place, trials, len(records))
                records = [
                    replace(record, places=tuple(trial.index(number) for trial in trials))
                    for number, record in enumerate(records, start=1)
                ]
            yield from records


def _check_size(where: str, place: Place, trials: Sequence[Sequence[int]] | None, images: int) -> None:
    count = len(trials[0]) if trials else 0
    if count != images:
        raise UserError(
            f"{where}: orders {count} images of person {place.person} by camera {place.camera}, the folder "
            f"has {images}: one of them is of another copy. The protocol sysu works without the file"
        )
