"""Sets of synthetic people as drops: the layout `builtin` lists them, and `csdn demo-images` writes them.

csdn.synthetic.rendering renders each image when it is read or written.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from csdn.data.catalog import ImageRecord
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_folder
from csdn.synthetic.people import RENDERER_VERSION, person
from csdn.synthetic.rendering import CAMERAS, Camera, encode, render

MARKER = "_SUCCESS"


class PeopleSet(NamedTuple):
    """A range of people, and the number of images of each by every camera of a modality."""

    first: int  # person number
    people: int
    visible: int
    infrared: int
    first_image: int = 1
    also: PeopleSet | None = None  # further people in the same drop


# Person numbers are below csdn.synthetic.people.PRETRAINING. A number is the same person in every set.
SETS = {
    "demo": PeopleSet(first=1_001, people=200, visible=2, infrared=4),
    "later": PeopleSet(first=2_001, people=50, visible=2, infrared=4),
    "tiny": PeopleSet(first=10_001, people=32, visible=1, infrared=2),
    # With data.test_percent 60, 150 of these are test people, as many as a comparison of two models needs.
    "gate": PeopleSet(first=40_001, people=240, visible=1, infrared=2),
    # A later drop of the same cameras: new people, and new images of known people.
    "gate-more": PeopleSet(
        first=40_241,
        people=80,
        visible=1,
        infrared=2,
        also=PeopleSet(first=40_001, people=80, visible=1, infrared=1, first_image=3),
    ),
}


class BuiltinImage(NamedTuple):
    """One image of a drop before it is rendered."""

    person: int
    camera: Camera
    number: int  # from 1

    @property
    def label(self) -> str:
        return f"p{self.person:04d}"

    @property
    def modality(self) -> str:
        return "infrared" if self.camera.infrared else "visible"

    @property
    def path(self) -> str:
        return f"{self.modality}/{self.camera.name}/{self.label}/{self.number:04d}.png"

    @property
    def etag(self) -> str:
        """Identifies the content without rendering it, because the renderer and the path determine the
        image.
        """
        return hashlib.sha256(f"csdn renderer {RENDERER_VERSION}: {self.path}".encode()).hexdigest()


def find_set(name: str) -> PeopleSet:
    """The set with a name; raises UserError, which lists the valid names, if there is none."""
    if name not in SETS:
        raise UserError(f"no built-in people are called {name!r}; there are: {', '.join(sorted(SETS))}")
    return SETS[name]


def images_of(people: PeopleSet) -> Iterator[BuiltinImage]:
    """Every image of a set, by camera, person and number."""
    for camera in CAMERAS:
        shots = people.infrared if camera.infrared else people.visible
        for number in range(people.first, people.first + people.people):
            for shot in range(people.first_image, people.first_image + shots):
                yield BuiltinImage(number, camera, shot)
    if people.also:
        yield from images_of(people.also)


def image_at(path: str) -> BuiltinImage:
    """The image at a path of a drop; raises ValueError for any other path."""
    if parts := re.fullmatch(r"(?:visible|infrared)/\w+/p(\d{4,9})/(\d{4})\.png", path):
        for camera in CAMERAS:
            image = BuiltinImage(int(parts[1]), camera, int(parts[2]))
            if image.path == path:
                return image
    raise ValueError(f"{path}: no path of a built-in image")


def png(image: BuiltinImage) -> bytes:
    """The bytes of the image's file."""
    return encode(render(person(image.person), image.camera, image.number))


def write_images(name: str, out: str | Path) -> None:
    """Write the set `name` as a folder in the layout `cameras`, with its marker, or nothing at all.

    Raises UserError for an unknown set, and if `out` exists and is not an empty folder.
    """
    people = find_set(name)
    files = ((image.path, png(image)) for image in images_of(people))
    write_files(itertools.chain(files, [(MARKER, b"")]), out)


def write_files(files: Iterable[tuple[str, bytes]], out: str | Path) -> int:
    """Write (path, content) of each file below `out`, completely or not at all; returns their number.

    Raises UserError if `out` exists and is not an empty folder.
    """
    out, count = Path(out).resolve(), 0
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; name another, nothing was written")
    with atomic_folder(out) as folder:
        for path, content in files:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            count += 1
    return count


# The layout `builtin`, at `builtin:NAME`; listing a drop renders no image.


SCHEME = "builtin:"


class BuiltinSource:
    """A drop of built-in people, such as `builtin:demo`; an image is rendered when it is read."""

    def __init__(self, address: str) -> None:
        if not address.startswith(SCHEME):
            raise UserError(
                f"{address}: an address of the layout builtin is {SCHEME}NAME, such as {SCHEME}demo"
            )
        self.people = find_set(address.removeprefix(SCHEME))
        self.refused: list[tuple[str, str]] = []
        self.ignored: list[str] = []
        self.notes: list[str] = []
        self.complete = True
        self.marker = None

    def listing(self) -> list[ImageRecord]:
        """Every image, sorted by path; sizes are 0, because they are not known before rendering."""
        return sorted(map(_record, images_of(self.people)), key=lambda record: record.path)

    def read(self, record: ImageRecord) -> bytes:
        """The PNG file of an image, the same bytes as `csdn demo-images` writes."""
        return png(image_at(record.path))


def _record(image: BuiltinImage) -> ImageRecord:
    return ImageRecord(
        path=image.path,
        person=image.label,
        modality=image.modality,
        camera=image.camera.name,
        size=0,
        etag=image.etag,
    )
