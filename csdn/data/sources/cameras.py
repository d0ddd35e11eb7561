"""Layout `cameras`: your own cameras, as folders or with a manifest.

`<modality>/<camera>/<person>/<name>.{jpg,jpeg,png,bmp}`, or `manifest.csv` / `manifest.parquet` at the root
(an address may also name a manifest file: the root is its folder). Hidden files are ignored. A drop is
complete when its manifest or a file `_SUCCESS` is there.
"""

from __future__ import annotations

from collections.abc import Iterator

from csdn.data.images import extension_of
from csdn.data.labels import NO_LABEL, canonical_label, label_fault
from csdn.data.records import MODALITIES, ImageRecord
from csdn.data.sources.tree import FileEntry, Files, open_tree
from csdn.errors import UserError

MANIFESTS = ("manifest.csv", "manifest.parquet")
MARKER = "_SUCCESS"
_LAYOUT = "not at modality/camera/person/name"

# A record, or (path, reason) where it cannot be one.
_Found = ImageRecord | tuple[str, str]


class CameraSource:
    """A drop in the layout `cameras` at a local folder or an `s3://` prefix."""

    def __init__(self, address: str) -> None:
        self.address = address
        folder, manifest = _split(address)
        self.manifests = (manifest,) if manifest else MANIFESTS
        self.tree = open_tree(folder)
        self.refused: list[tuple[str, str]] = []
        self.ignored = 0
        self.complete = False

    def listing(self) -> list[ImageRecord]:
        """Every image, sorted by path; raises UserError for a missing or empty root and a broken manifest."""
        files = self.tree.files()
        manifest = next((name for name in self.manifests if name in files.entries), None)
        found = list(self._manifest_images(files, manifest) if manifest else _folder_images(files))
        records = [item for item in found if isinstance(item, ImageRecord)]
        self.refused = sorted(item for item in found if isinstance(item, tuple))
        self.complete = manifest is not None or MARKER in files.entries
        spoken_of = {record.path for record in records} | {path for path, _ in self.refused}
        self.ignored = len((set(files.entries) | set(files.refused)) - spoken_of - {manifest, MARKER})
        if not found:
            raise UserError(
                f"{self.address}: no image; expected {' or '.join(self.manifests)}, or files "
                "<visible|infrared>/<camera>/<person>/<name>.jpg (.jpeg, .png, .bmp)"
            )
        return sorted(records, key=_order)

    def read(self, record: ImageRecord) -> bytes:
        return self.tree.read(record.path)

    def _manifest_images(self, files: Files, manifest: str) -> Iterator[_Found]:
        # Imported here: worker processes read images only, and start faster without pyarrow.
        from csdn.data.sources.manifest import read_manifest

        for row in read_manifest(self.tree.read(manifest), f"{self.address.rstrip('/')}: {manifest}"):
            file = files.entries.get(row.path)
            if row.refusal or file is None:
                yield row.path, row.refusal or files.refused.get(row.path, "no such file")
            else:
                about = (row.modality, row.camera)
                yield _reason(row.path, *about) or _record(file, row.person, *about, row.captured_at)


def _order(record: ImageRecord) -> tuple[str, ...]:
    """By path; a manifest may name a path more than once, with other words."""
    return record.path, record.person, record.modality, record.camera


def _split(address: str) -> tuple[str, str | None]:
    """(folder, manifest's name or None) of an address."""
    folder, _, name = address.rpartition("/")
    if name.endswith((".csv", ".parquet")):
        return folder or ("/" if address.startswith("/") else "."), name
    return address, None


def _folder_images(files: Files) -> Iterator[_Found]:
    for path, reason in files.refused.items():
        if extension_of(path) or reason.startswith("link"):
            yield path, reason
    for path, entry in files.entries.items():
        folders = path.split("/")[:-1]
        if extension_of(path) is None or any(part.startswith(".") for part in path.split("/")):
            continue
        if len(folders) not in (2, 3):
            yield path, _LAYOUT
            continue
        modality, camera, *person = folders
        yield _reason(path, modality, camera) or _record(entry, "".join(person), modality, camera)


def _reason(path: str, modality: str, camera: str) -> tuple[str, str] | None:
    if extension_of(path) is None:
        return path, "not a jpg, png or bmp file"
    if label_fault(modality) or canonical_label(modality) not in MODALITIES:
        return path, "unknown modality"
    fault = label_fault(camera)
    return (path, "unknown camera" if fault == NO_LABEL else f"camera {fault}") if fault else None


def _record(
    file: FileEntry, person: str, modality: str, camera: str, captured_at: str | None = None
) -> ImageRecord:
    return ImageRecord(
        file.path, person, canonical_label(modality), camera, file.size, captured_at, file.etag
    )
