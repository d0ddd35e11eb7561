"""What the layouts of the public benchmarks share: the authors' lists, and the splits that they define.

The authors of a benchmark say who is trained on and who is tested: `ImageRecord.splits`. The number of a
person is valid within the benchmark alone, so a label begins with the layout's name: `sysu-0006` is not
`llcm-0006`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping

from csdn.data.catalog import ImageRecord
from csdn.data.labels import canonical_label, label_fault
from csdn.data.outputs import refused_in_words
from csdn.ingest.sources.tree import FileEntry, Files, Kind, kind_of, not_taken, open_tree
from csdn.runtime.documents import read_text
from csdn.runtime.errors import UserError

TRAIN, TEST = "train", "test"

# A record, or (path, reason) of a file that is refused.
Found = ImageRecord | tuple[str, str]


class BenchmarkSource(ABC):
    """A benchmark in a local folder or an object store; a subclass implements the layout."""

    layout: str
    lists: str  # folder of the authors' lists

    def __init__(self, address: str) -> None:
        self.address = address
        self.tree = open_tree(address)
        self.refused: list[tuple[str, str]] = []
        self.ignored: list[str] = []
        self.notes: list[str] = []
        self.complete = True  # the lists say which files there must be
        self.marker = None

    def listing(self) -> list[ImageRecord]:
        """Every image of a person on the lists, sorted by path.

        Raises UserError for a list that is missing or contradicts itself, for a person on a list without
        images, and for a camera without images.
        """
        files = self.tree.files()
        items = list(self.find(files))
        records = sorted(
            (item for item in items if isinstance(item, ImageRecord)), key=lambda record: record.path
        )
        self.refused = sorted(item for item in items if isinstance(item, tuple))
        listed = {record.path for record in records} | {path for path, _ in self.refused}
        others = sorted(set(files.entries) - listed)
        lists = f"{self.lists}/"
        self.ignored = files.ignored + [path for path in others if not path.lower().startswith(lists)]
        return records

    @abstractmethod
    def find(self, files: Files) -> Iterator[Found]:
        """Every image of a person on the lists, in any order."""

    def read(self, record: ImageRecord) -> bytes:
        return self.tree.read(record)

    def record(
        self, file: FileEntry, person: int, modality: str, camera: str, splits: tuple[str, ...]
    ) -> ImageRecord:
        label = f"{self.layout}-{person:04d}"
        return ImageRecord(file.path, label, modality, camera, file.size, etag=file.etag, splits=splits)

    def read_bytes(self, files: Files, path: str) -> bytes:
        """The bytes of a list; raises UserError where it is missing."""
        real = files.real_path(path)
        if real not in files.entries:
            why = f" ({files.refused[real]})" if real in files.refused else ""
            raise UserError(f"{self.address}: {path} is missing{why}; layout {self.layout} needs it")
        return self.tree.read(files.entries[real])

    def read_lines(self, files: Files, path: str) -> list[str]:
        return read_text(self.read_bytes(files, path), f"{self.address}: {path}").split("\n")

    def read_people(self, files: Files, path: str) -> list[int]:
        """Numbers of people, separated by commas; raises UserError where one is invalid or repeated."""
        numbers: list[int] = []
        for word in ",".join(self.read_lines(files, path)).split(","):
            if not word.strip():
                continue
            person = whole_number(word)
            if person is None:
                raise UserError(f"{self.address}: {path}: {word.strip()!r} is not a person's number")
            if person in numbers:
                raise UserError(f"{self.address}: {path}: person {person} is listed twice")
            numbers.append(person)
        if not numbers:
            raise UserError(f"{self.address}: {path} lists nobody")
        return numbers

    def read_images(self, files: Files, path: str) -> list[tuple[str, int]]:
        """Lines `path label`, as (path of the file, label).

        Raises UserError for any other line, and for a path that is listed twice.
        """
        rows: dict[str, int] = {}
        for number, line in enumerate(self.read_lines(files, path), start=1):
            if not line.strip():
                continue
            parts = re.fullmatch(r"\s*(\S.*?)\s+(\S+)\s*", line, re.ASCII)
            label = whole_number(parts[2]) if parts else None
            if parts is None or label is None:
                raise UserError(
                    f"{self.address}: {path}, line {number}: {line!r} is not `path label`, such as "
                    "Visible/285/image.bmp 0"
                )
            image = files.real_path(parts[1])
            if image in rows:
                raise UserError(f"{self.address}: {path}, line {number}: {parts[1]} is listed twice")
            rows[image] = label
        if not rows:
            raise UserError(f"{self.address}: {path} lists nothing")
        return list(rows.items())

    def check_labels(self, path: str, labels: Mapping[str, int], people: Mapping[str, int]) -> None:
        """Raise UserError unless labels and people of a list correspond one to one; both are given by image
        path.
        """
        pairs = {(people[image], label) for image, label in labels.items() if image in people}
        for index, what in ((0, "person"), (1, "label")):
            seen = [pair[index] for pair in pairs]
            twice = sorted({one for one in seen if seen.count(one) > 1}) if len(set(seen)) < len(seen) else []
            if twice:
                raise UserError(
                    f"{self.address}: {path}: {what} {twice[0]} has more than one "
                    f"{'label' if what == 'person' else 'person'}; a label stands for one person"
                )

    def check_apart(self, train: Collection[int], test: Collection[int], where: str) -> None:
        """Raise UserError, which names the people, if someone is listed for training and for testing."""
        if both := sorted(set(train) & set(test)):
            raise UserError(
                f"{self.address}: {where}: person {', '.join(map(str, both[:5]))} is listed for training and "
                f"for testing ({len(both)} in all); the figures would be worthless"
            )

    def check_there(self, listed: Collection[int], found: Collection[int], path: str) -> None:
        """Raise UserError, which names the people, if someone on a list has no image."""
        if missing := sorted(set(listed) - set(found)):
            raise UserError(
                f"{self.address}: {path}: person {', '.join(map(str, missing[:5]))} has no image "
                f"({len(missing)} in all); is the copy complete?"
            )

    def check_cameras(self, files: Files, expected: Collection[str], found: Collection[str]) -> None:
        """Raise UserError, which names the cameras, if a camera (a folder) of the layout has no image."""
        if empty := sorted(set(expected) - set(found)):
            below = tuple(f"{camera}/".lower() for camera in empty)
            refused = [(path, reason) for path, reason in files.refused.items()]
            refused += [(path, not_taken(path)) for path in files.entries if kind_of(path) != Kind.IMAGE]
            words = refused_in_words([(p, reason) for p, reason in refused if p.lower().startswith(below)])
            raise UserError(
                f"{self.address}: {', '.join(empty)} has no image of a person on the lists"
                f"{f'; refused there: {words}' if words else '; is the copy complete?'}"
            )


def whole_number(text: str) -> int | None:
    """12 of "12", "0012", "12.0" and "12."; None for anything else, and for more than nine digits."""
    if label_fault(text):
        return None
    label = canonical_label(text)
    return int(label) if re.fullmatch(r"\d{1,9}", label, re.ASCII) else None


def refusal_of_listed(files: Files, path: str, fits: bool, place: str) -> str | None:
    """Why a path on a list is not an image of the drop, None where it is; fits: it is at `place`."""
    if path.startswith("/") or ".." in path.split("/"):
        return "outside the drop"
    if not fits:
        return f"not at {place}"
    if kind_of(path) != Kind.IMAGE:
        return not_taken(path)
    return None if path in files.entries else files.refused.get(path, "no such file")
