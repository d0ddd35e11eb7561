"""Layout `cameras`: your own cameras, as folders or with a manifest.

`<modality>/<camera>/<person>/<name>.{jpg,jpeg,png,bmp}`, or `manifest.csv` / `manifest.parquet` at the root
(an address may also name a manifest file: the root is its folder). Letter case of modalities and extensions
means nothing. A drop is complete when its manifest or a file `_SUCCESS` is there. A camera of which no file
can be taken is an error: it would be missing without a word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from csdn.data.labels import NO_LABEL, canonical_label, label_fault
from csdn.data.records import MODALITIES, ImageRecord
from csdn.data.refusals import refused_in_words
from csdn.data.sources.kinds import Kind, kind_of, kinds_in_words, not_taken, taken_kinds
from csdn.data.sources.tree import FileEntry, Files, is_system_file, open_tree
from csdn.errors import UserError

MANIFESTS = ("manifest.csv", "manifest.parquet")
MARKER = "_SUCCESS"
_LAYOUT = "not at modality/camera/person/name"


class _Found(NamedTuple):
    """A file that the drop says is an image: its record, or why it cannot be one."""

    path: str
    modality: str
    camera: str
    record: ImageRecord | None
    reason: str = ""


class CameraSource:
    """A drop in the layout `cameras` at a local folder or an `s3://` prefix."""

    def __init__(self, address: str) -> None:
        self.address = address
        folder, manifest = _split(address)
        self.manifests = (manifest,) if manifest else MANIFESTS
        self.tree = open_tree(folder)
        self.refused: list[tuple[str, str]] = []
        self.ignored: list[str] = []
        self.notes: list[str] = []
        self.complete = False

    def listing(self) -> list[ImageRecord]:
        """Every image, sorted by path.

        Raises UserError for a root that is missing or has no image, a broken manifest, and a camera of which
        no file can be taken.
        """
        files = self.tree.files()
        paths = (files.real_path(name) for name in self.manifests)
        manifest = next((path for path in paths if path in files.entries), None)
        self.notes = []
        found = list(self._manifest_images(files, manifest) if manifest else _folder_images(files))
        records = [item.record for item in found if item.record]
        self.refused = sorted((item.path, item.reason) for item in found if not item.record and item.reason)
        self.complete = manifest is not None or MARKER in files.entries
        spoken_of = {record.path for record in records} | {path for path, _ in self.refused}
        others = (set(files.entries) | set(files.refused)) - spoken_of - {manifest, MARKER}
        self.ignored = sorted([*files.ignored, *others])
        if not records and not self.refused:
            there = refused_in_words(kinds_in_words(sorted(others)))
            raise UserError(
                f"{self.address}: no image; expected {' or '.join(self.manifests)}, or files "
                f"<visible|infrared>/<camera>/<person>/<name> ending in {taken_kinds()}"
                f"{f'. There are: {there}' if there else ''}"
            )
        if self.complete:  # a camera's images may be on their way
            self._check_cameras(found)
        return sorted(records, key=_order)

    def read(self, record: ImageRecord) -> bytes:
        return self.tree.read(record.path)

    def _manifest_images(self, files: Files, manifest: str) -> Iterator[_Found]:
        # Imported here: worker processes read images only, and start faster without pyarrow.
        from csdn.data.sources.manifest import read_manifest

        turned = 0
        for row in read_manifest(self.tree.read(manifest), f"{self.address.rstrip('/')}: {manifest}"):
            path, modality = files.real_path(row.path), _modality(row.modality)
            turned += path != row.path and "\\" in row.path
            reason = (
                row.refusal
                or ("hidden or system file" if is_system_file(path) else None)
                or (files.refused.get(path, "no such file") if path not in files.entries else None)
                or _reason(path, modality, row.camera)
            )
            record = None
            if not reason:
                record = _record(files.entries[path], row.person, modality, row.camera, row.captured_at)
            yield _Found(path, modality, row.camera, record, reason or "")
        if turned:
            self.notes.append(f"{manifest}: {turned} paths have the separator of Windows, \\, read as /")

    def _check_cameras(self, found: Iterable[_Found]) -> None:
        """Every camera that the drop has files of has an image; raises UserError naming the first without."""
        cameras: dict[tuple[str, str], list[_Found]] = defaultdict(list)
        for item in found:
            if item.modality in MODALITIES and not label_fault(item.camera):
                cameras[item.modality, canonical_label(item.camera)].append(item)
        for (modality, camera), items in sorted(cameras.items()):
            if not any(item.record for item in items):
                words = refused_in_words([(item.path, item.reason or not_taken(item.path)) for item in items])
                raise UserError(
                    f"{self.address}: {modality} camera {camera}: none of {len(items)} files can be taken: "
                    f"{words}. Mend them, or take the camera out of the drop; taken are {taken_kinds()}"
                )


def _order(record: ImageRecord) -> tuple[str, ...]:
    """By path; a manifest may name a path more than once, with other words."""
    return record.path, record.person, record.modality, record.camera


def _split(address: str) -> tuple[str, str | None]:
    """(folder, manifest's name or None) of an address."""
    folder, _, name = address.rpartition("/")
    if name.lower().endswith((".csv", ".parquet")):
        return folder or ("/" if address.startswith("/") else "."), name
    return address, None


def _folder_images(files: Files) -> Iterator[_Found]:
    """Every image; files of other kinds too: without a record, and with a reason where they may be images."""
    for path in sorted({*files.entries, *files.refused}):
        kind, folders = kind_of(path), path.split("/")[:-1]
        modality, camera, *person = (*folders, "", "")[: max(2, len(folders))]
        modality = _modality(modality)
        misplaced = _LAYOUT if len(folders) not in (2, 3) else None
        reason = files.refused.get(path) or misplaced or _reason(path, modality, camera)
        if kind == Kind.NO_IMAGE:
            yield _Found(path, modality, camera, None)
        elif reason:
            yield _Found(path, modality, camera, None, reason)
        else:
            record = _record(files.entries[path], "".join(person), modality, camera)
            yield _Found(path, modality, camera, record)


def _modality(name: str) -> str:
    """The modality's canonical label, or the name as given where it is none."""
    return name if label_fault(name) else canonical_label(name)


def _reason(path: str, modality: str, camera: str) -> str | None:
    """Why a file that is there is no image of a camera; None where it is one."""
    if kind_of(path) != Kind.IMAGE:
        return not_taken(path)
    if modality not in MODALITIES:
        return "unknown modality"
    fault = label_fault(camera)
    return ("unknown camera" if fault == NO_LABEL else f"camera {fault}") if fault else None


def _record(
    file: FileEntry, person: str, modality: str, camera: str, captured_at: str | None = None
) -> ImageRecord:
    return ImageRecord(file.path, person, modality, camera, file.size, captured_at, file.etag)
