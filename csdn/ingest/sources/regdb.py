"""Layout `regdb`: RegDB, with the lists of its ten trials: ten splits, of which `data.trial` chooses one.

`idx/{train,test}_{visible,thermal}_{1..10}.txt` hold lines `Visible/285/male_back_v_05528_285.bmp 0`: the
path below the root, and a label that counts the list's people. A person is the number of the folder.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from csdn.data.catalog import Modality
from csdn.ingest.sources.benchmark import TEST, TRAIN, BenchmarkSource, Found, outside
from csdn.ingest.sources.kinds import Kind, kind_of, not_taken
from csdn.ingest.sources.tree import Files

TRIALS = 10
CAMERAS = {"visible": Modality.VISIBLE, "thermal": Modality.INFRARED}  # one camera of each kind

_PATH = re.compile(r"(?P<camera>Visible|Thermal)/(?P<person>\d{1,9})/[^/]+", re.ASCII | re.IGNORECASE)


class RegdbSource(BenchmarkSource):
    layout = "regdb"
    lists = "idx"

    def find(self, files: Files) -> Iterator[Found]:
        sides: dict[str, list[str]] = defaultdict(lambda: [""] * TRIALS)
        for trial in range(1, TRIALS + 1):
            for path, side in self._trial(files, trial).items():
                sides[path][trial - 1] = side
        cameras = set()
        for path in sorted(sides):
            match = _PATH.fullmatch(path)
            if reason := _refusal(path, bool(match), files):
                yield path, reason
                continue
            camera = match["camera"].lower()
            cameras.add(camera)
            yield self.record(
                files.entries[path], int(match["person"]), CAMERAS[camera], camera, tuple(sides[path])
            )
        self.check_cameras(files, CAMERAS, cameras)

    def _trial(self, files: Files, trial: int) -> dict[str, str]:
        """Side of each path on the lists of a trial, checked."""
        sides: dict[str, str] = {}
        people: dict[str, set[int]] = {TRAIN: set(), TEST: set()}
        for side in people:
            for camera in CAMERAS:
                name = f"idx/{side}_{camera}_{trial}.txt"
                labels = dict(self.read_images(files, name))
                found = {path: int(match["person"]) for path in labels if (match := _PATH.fullmatch(path))}
                self.check_labels(name, labels, found)
                people[side].update(found.values())
                sides.update(dict.fromkeys(labels, side))
        self.check_apart(people[TRAIN], people[TEST], f"idx, trial {trial}")
        return sides


def _refusal(path: str, fits: bool, files: Files) -> str | None:
    """Why a listed path is no image of the drop; None where it is one."""
    if outside(path):
        return "outside the drop"
    if not fits:
        return "not at Visible|Thermal/person/name"
    if kind_of(path) != Kind.IMAGE:
        return not_taken(path)
    return None if path in files.entries else files.refused.get(path, "no such file")
