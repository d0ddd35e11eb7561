"""Layout `llcm`: LLCM as its authors publish it.

Training: `idx/train_vis.txt` and `idx/train_nir.txt`, lines `nir/0001/0001_c01_s185535_f7010_nir.jpg 0` (path
and a label that counts the people). Test: the people of `idx/test_id.txt`, whose images are all those in
`test_vis/cam1..9/<person>/` and `test_nir/cam1,2,4..9/<person>/`. A number means the same camera in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from csdn.data.catalog import Modality
from csdn.ingest.sources.benchmark import TEST, TRAIN, BenchmarkSource, Found, refusal_of_listed
from csdn.ingest.sources.tree import Files, Kind, kind_of, not_taken

_MODALITY_OF_KIND = {"vis": Modality.VISIBLE, "nir": Modality.INFRARED}
TEST_LIST = "idx/test_id.txt"
TEST_CAMERAS = {"vis": (1, 2, 3, 4, 5, 6, 7, 8, 9), "nir": (1, 2, 4, 5, 6, 7, 8, 9)}

_TRAIN_PATH = re.compile(
    r"(?P<kind>vis|nir)/(?P<person>\d{1,9})/(?:[^/]*?_)?c(?P<camera>\d{1,3})_[^/]*", re.ASCII | re.IGNORECASE
)
_TEST_PATH = re.compile(
    r"test_(?P<kind>vis|nir)/cam(?P<camera>\d{1,3})/(?P<person>\d{1,9})/[^/]+", re.ASCII | re.IGNORECASE
)


class LlcmSource(BenchmarkSource):
    layout = "llcm"
    lists = "idx"

    def find(self, files: Files) -> Iterator[Found]:
        test = self.read_people(files, TEST_LIST)
        train: set[int] = set()
        for kind in _MODALITY_OF_KIND:
            name = f"idx/train_{kind}.txt"
            labels = dict(self.read_images(files, name))
            people = {path: int(m["person"]) for path in labels if (m := _TRAIN_PATH.fullmatch(path))}
            self.check_labels(name, labels, people)
            train.update(people.values())
            yield from self._train_images(files, kind, labels)
        self.check_apart(train, test, "idx")
        yield from self._test_images(files, set(test))

    def _train_images(self, files: Files, kind: str, paths: dict[str, int]) -> Iterator[Found]:
        found = False
        for path in paths:
            match = _TRAIN_PATH.fullmatch(path)
            fits = match is not None and match["kind"].lower() == kind
            reason = refusal_of_listed(files, path, fits, f"{kind}/person/..._c<camera>_...")
            if match is None or reason:
                yield path, str(reason)
            else:
                found = True
                yield self._record(files, path, match, TRAIN)
        self.check_cameras(files, [kind], [kind] if found else [])

    def _test_images(self, files: Files, people: set[int]) -> Iterator[Found]:
        cameras, found = set(), set()
        for path in sorted({*files.entries, *files.refused}):
            match = _TEST_PATH.fullmatch(path)
            if match is None or kind_of(path) == Kind.NO_IMAGE or int(match["person"]) not in people:
                continue
            other = not_taken(path) if kind_of(path) == Kind.OTHER_IMAGE else None
            if reason := files.refused.get(path, other):
                yield path, reason
                continue
            cameras.add(f"test_{match['kind'].lower()}/cam{int(match['camera'])}")
            found.add(int(match["person"]))
            yield self._record(files, path, match, TEST)
        expected = [f"test_{kind}/cam{n}" for kind, numbers in TEST_CAMERAS.items() for n in numbers]
        self.check_cameras(files, expected, cameras)
        self.check_there(people, found, TEST_LIST)

    def _record(self, files: Files, path: str, match: re.Match[str], split: str) -> Found:
        camera = f"cam{int(match['camera'])}"
        return self.record(
            files.entries[path],
            int(match["person"]),
            _MODALITY_OF_KIND[match["kind"].lower()],
            camera,
            (split,),
        )
