"""Layout `cameras`: images of your own cameras, in folders or with a manifest.

`<modality>/<camera>/<person>/<name>`, or `manifest.csv` / `manifest.parquet` at the root with a row for each
image (an address may also name a manifest file: then the root is its folder). Modalities and extensions may
be in any letter case. A drop is complete when its manifest or a file `_SUCCESS` is there. A camera without a
usable file is an error, because otherwise it would be missing silently.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from csdn.data.catalog import MODALITIES, ImageRecord
from csdn.data.labels import NO_LABEL, canonical_label, exact_below, label_fault
from csdn.data.outputs import from_cell, refused_in_words
from csdn.ingest.sources.tree import (
    FileEntry,
    Files,
    Kind,
    is_system_file,
    kind_of,
    kinds_in_words,
    not_taken,
    open_tree,
    taken_kinds,
)
from csdn.runtime.documents import delimiter_of, read_text
from csdn.runtime.errors import UserError
from csdn.runtime.sanitize import escape_control_chars

REQUIRED = ("path", "person", "modality", "camera")
OPTIONAL = ("captured_at", "confirmed")
CONFIRMED = frozenset({"yes", "y", "true", "1", "x"})  # in any letter case


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One row; `refusal` says why its path is not allowed, None where it is.

    `confirmed` is False for an unconfirmed suggestion (csdn.curation.suggestions).
    """

    path: str
    person: str
    modality: str
    camera: str
    captured_at: str | None
    confirmed: bool
    refusal: str | None


def read_manifest(data: bytes, name: str) -> Iterator[ManifestRow]:
    """The rows of a manifest's bytes; `name` names it in errors. Raises UserError."""
    try:
        table = _read_table(data, name)
        columns = [_texts(table[column], f"{name}: column {column}") for column in (*REQUIRED, *OPTIONAL)]
    except (pa.ArrowException, ValueError, OSError, KeyError) as error:  # damaged pages raise an OSError
        raise UserError(f"{name}: not readable as a table: {error}") from None
    for path, person, modality, camera, captured_at, confirmed in zip(*columns, strict=True):
        clean, refusal = _inside(path or "")
        sure = (confirmed or "").strip().casefold() in CONFIRMED
        yield ManifestRow(
            clean, person or "", modality or "", camera or "", captured_at or None, sure, refusal
        )


def _texts(column: pa.ChunkedArray, where: str) -> list[str | None]:
    """The values as text. Raises UserError for floats so large that digits are lost."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not pa.types.is_floating(column.type):
        return column.cast(pa.string()).to_pylist()
    values = column.to_numpy()  # a missing value is NaN
    if len(inexact := values[np.isfinite(values) & (np.abs(values) >= exact_below(values.dtype))]):
        raise UserError(
            f"{where}: {inexact[0]}, as {values.dtype}, may stand for several numbers: write whole numbers, "
            "or texts"
        )
    return [str(value) for value in values.tolist()]


def _read_table(data: bytes, name: str) -> pa.Table:
    if name.lower().endswith(".parquet"):
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    else:
        texts = dict.fromkeys(
            (*REQUIRED, *OPTIONAL), pa.string()
        )  # "007" and "NA" are labels, not a number and a missing value
        text = read_text(data, name)
        table = csv.read_csv(
            io.BytesIO(text.encode()),
            parse_options=csv.ParseOptions(delimiter=delimiter_of(text)),
            convert_options=csv.ConvertOptions(column_types=texts),
        )
    missing = [column for column in REQUIRED if column not in table.column_names]
    if missing:
        raise UserError(
            f"{name}: column {', '.join(missing)} is missing; it needs {', '.join(REQUIRED)} "
            f"(and may have {', '.join(OPTIONAL)}); it has {', '.join(table.column_names)}"
        )
    if "captured_at" not in table.column_names:
        table = table.append_column("captured_at", pa.nulls(table.num_rows, pa.string()))
    if "confirmed" not in table.column_names:  # the labels are somebody's
        return table.append_column("confirmed", pa.repeat("yes", table.num_rows))
    return table if name.lower().endswith(".parquet") else _unescaped(table)


def _unescaped(table: pa.Table) -> pa.Table:
    """The table of a CSV that csdn wrote, with its texts as they were before csdn.data.outputs.as_cell."""
    for column in REQUIRED:
        texts = [from_cell(text) for text in table[column].cast(pa.string()).to_pylist()]
        table = table.set_column(table.column_names.index(column), column, pa.array(texts))
    return table


def _inside(path: str) -> tuple[str, str | None]:
    """The normalised path, and why it is refused, or None; it must be below the manifest's folder."""
    plain, windows = PurePosixPath(path), PureWindowsPath(path)
    if not path or path == ".":
        return path, "no path"
    if "\0" in path:
        return escape_control_chars(path), "NUL in the path"
    if plain.is_absolute() or windows.is_absolute():
        return path, "absolute path, not one below the manifest's folder"
    if ".." in (*plain.parts, *windows.parts):
        return path, "outside the drop"
    return str(plain), None


# The drop.


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
    """A drop in the layout `cameras` in a local folder or an object store."""

    def __init__(self, address: str) -> None:
        self.address = address
        folder, manifest = split_manifest(address)
        self.manifests = (manifest,) if manifest else MANIFESTS
        self.tree = open_tree(folder)
        self.refused: list[tuple[str, str]] = []
        self.ignored: list[str] = []
        self.notes: list[str] = []
        self.complete = False
        self.marker: FileEntry | None = None

    def listing(self) -> list[ImageRecord]:
        """Every image, sorted by path.

        Raises UserError for a root that is missing or has no image, a broken manifest, and a camera of which
        no file can be taken.
        """
        found = self._find()
        if not any(item.record for item in found) and not self.refused:
            others = [path for path in self.ignored if not is_system_file(path)]
            there = refused_in_words(kinds_in_words(others))
            raise UserError(
                f"{self.address}: no image; expected {' or '.join(self.manifests)}, or files "
                f"<visible|infrared>/<camera>/<person>/<name> ending in {taken_kinds()}"
                f"{f'. There are: {there}' if there else ''}"
            )
        if self.complete:  # a camera's images may be on their way
            self._check_cameras(found)
        return _records(found)

    def images(self) -> list[ImageRecord]:
        """The same of a drop that may have no image, or none of a camera, because somebody was forgotten."""
        return _records(self._find())

    def _find(self) -> list[_Found]:
        """What the drop says are images; sets the attributes."""
        files = self.tree.files()
        paths = (files.real_path(name) for name in self.manifests)
        manifest = next((path for path in paths if path in files.entries), None)
        self.notes = []
        found = list(self._manifest_images(files, manifest) if manifest else _folder_images(files))
        self.refused = sorted((item.path, item.reason) for item in found if not item.record and item.reason)
        self.marker = files.entries.get(manifest or MARKER)
        self.complete = self.marker is not None
        spoken_of = {item.path for item in found if item.record or item.reason}
        others = (set(files.entries) | set(files.refused)) - spoken_of - {manifest, MARKER}
        self.ignored = sorted([*files.ignored, *others])
        return found

    def read(self, record: ImageRecord) -> bytes:
        return self.tree.read(record)

    def _manifest_images(self, files: Files, manifest: str) -> Iterator[_Found]:
        backslashes = unconfirmed = 0
        for row in read_manifest(
            self.tree.read(files.entries[manifest]), f"{self.address.rstrip('/')}: {manifest}"
        ):
            path, modality = files.real_path(row.path), _modality(row.modality)
            backslashes += path != row.path and "\\" in row.path
            reason = (
                row.refusal
                or ("hidden or system file" if is_system_file(path) else None)
                or (files.refused.get(path, "no such file") if path not in files.entries else None)
                or _reason(path, modality, row.camera)
            )
            record = None
            if not reason:
                labels = row.person, modality, row.camera, row.captured_at, row.confirmed
                record = _record(files.entries[path], *labels)
                unconfirmed += not row.confirmed
            yield _Found(path, modality, row.camera, record, reason or "")
        if backslashes:
            self.notes.append(f"{manifest}: {backslashes} paths have the separator of Windows, \\, read as /")
        if unconfirmed:
            self.notes.append(f"{manifest}: {unconfirmed} suggestions are unconfirmed")

    def _check_cameras(self, found: Iterable[_Found]) -> None:
        """Raise UserError, which names the camera, if none of a camera's files is an image."""
        cameras: dict[tuple[str, str], list[_Found]] = defaultdict(list)
        for item in found:
            if item.modality in MODALITIES and not label_fault(item.camera):
                cameras[item.modality, canonical_label(item.camera)].append(item)
        for (modality, camera), items in sorted(cameras.items()):
            if not any(item.record for item in items):
                words = refused_in_words([(item.path, item.reason or not_taken(item.path)) for item in items])
                raise UserError(
                    f"{self.address}: {modality} camera {camera}: none of {len(items)} files can be taken: "
                    f"{words}. Repair them, or take the camera out of the drop; taken are {taken_kinds()}"
                )


def _records(found: Iterable[_Found]) -> list[ImageRecord]:
    return sorted((item.record for item in found if item.record), key=_order)


def _order(record: ImageRecord) -> tuple[str, ...]:
    """By path, and then by labels, because a manifest may list a path more than once."""
    return record.path, record.person, record.modality, record.camera


def split_manifest(address: str) -> tuple[str, str | None]:
    """(folder, name of the manifest or None) of an address."""
    folder, _, name = address.rpartition("/")
    if name.lower().endswith((".csv", ".parquet")):
        return folder or ("/" if address.startswith("/") else "."), name
    return address, None


def _folder_images(files: Files) -> Iterator[_Found]:
    """Every file: an image has a record, any other file that may be an image has a reason."""
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
    """The canonical label of a modality, or the name as given where it is not a label."""
    return name if label_fault(name) else canonical_label(name)


def _reason(path: str, modality: str, camera: str) -> str | None:
    """Why an existing file is not an image of a camera; None where it is."""
    if kind_of(path) != Kind.IMAGE:
        return not_taken(path)
    if modality not in MODALITIES:
        return "unknown modality"
    fault = label_fault(camera)
    return ("unknown camera" if fault == NO_LABEL else f"camera {fault}") if fault else None


def _record(
    file: FileEntry,
    person: str,
    modality: str,
    camera: str,
    captured_at: str | None = None,
    confirmed: bool = True,
) -> ImageRecord:
    return ImageRecord(
        file.path, person, modality, camera, file.size, captured_at, file.etag, confirmed=confirmed
    )
