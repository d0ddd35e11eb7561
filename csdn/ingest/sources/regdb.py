"""Layout `regdb`: RegDB, with the lists of its ten trials (splits), of which `data.trial` chooses one.

`idx/{train,test}_{visible,thermal}_{1..10}.txt` hold lines `Visible/285/male_back_v_05528_285.bmp 0`: the
path below the root, and a label that counts the list's people. The folder's number is the person.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from csdn.data.catalog import Modality
from csdn.ingest.sources.benchmark import TEST, TRAIN, BenchmarkSource, Found, refusal_of_listed
from csdn.ingest.sources.tree import Files

TRIALS = 10
CAMERAS = {"visible": Modality.VISIBLE, "thermal": Modality.INFRARED}  # one camera of each kind

_PATH = re.compile(r"(?P<camera>Visible|Thermal)/(?P<person>\d{1,9})/[^/]+", re.ASCII | re.IGNORECASE)


class RegdbSource(BenchmarkSource):
    layout = "regdb"
    lists = "idx"

    def find(self, files: Files) -> Iterator[Found]:
        splits: dict[str, list[str]] = defaultdict(lambda: [""] * TRIALS)
        for trial in range(1, TRIALS + 1):
            for path, split in self._trial(files, trial).items():
                splits[path][trial - 1] = split
        cameras = set()
        for path in sorted(splits):
            match = _PATH.fullmatch(path)
            reason = refusal_of_listed(files, path, bool(match), "Visible|Thermal/person/name")
            if match is None or reason:
                yield path, str(reason)
                continue
            camera = match["camera"].lower()
            cameras.add(camera)
            yield self.record(
                files.entries[path], int(match["person"]), CAMERAS[camera], camera, tuple(splits[path])
            )
        self.check_cameras(files, CAMERAS, cameras)

    def _trial(self, files: Files, trial: int) -> dict[str, str]:
        """The split of each path on the lists of a trial; raises UserError where they contradict."""
        splits: dict[str, str] = {}
        people: dict[str, set[int]] = {TRAIN: set(), TEST: set()}
        for split in people:
            for camera in CAMERAS:
                name = f"idx/{split}_{camera}_{trial}.txt"
                labels = dict(self.read_images(files, name))
                found = {path: int(match["person"]) for path in labels if (match := _PATH.fullmatch(path))}
                self.check_labels(name, labels, found)
                people[split].update(found.values())
                splits.update(dict.fromkeys(labels, split))
        self.check_apart(people[TRAIN], people[TEST], f"idx, trial {trial}")
        return splits
