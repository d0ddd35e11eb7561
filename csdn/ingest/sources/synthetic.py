"""Layout `builtin`: the people of csdn.synthetic, at `builtin:NAME`; listing them renders no image."""

from __future__ import annotations

from csdn.data.catalog import ImageRecord
from csdn.runtime.errors import UserError
from csdn.synthetic.sets import BuiltinImage, find_set, image_at, images_of, png

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
