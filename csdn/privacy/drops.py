"""A person in the drops: which images are the person's, their removal where it is allowed, and the search for
what is left.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from csdn.data.catalog import ImageRecord
from csdn.data.images import BadImage
from csdn.data.outputs import from_cell
from csdn.ingest.forgotten import NOBODY
from csdn.ingest.ledger import Drop, Status, list_records
from csdn.ingest.sources import Source, open_source
from csdn.ingest.sources.cameras import CameraSource, split_manifest
from csdn.ingest.sources.tree import Kind, LocalTree, kind_of
from csdn.privacy.rewrite import IMAGE, NAME, Removal
from csdn.runtime.documents import delimiter_of, read_text
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_write

Shows = Callable[[bytes, str], Collection[str]]  # what of the person is in a file's bytes; its name


@dataclass(frozen=True)
class DropImages:
    """The person's images in a drop: its listing without them, and what to remove.

    paths: of the images, and of other files in folders called like the person. problem: why the drop cannot
    be listed; "" where it can.
    """

    drop: Drop
    source: Source | None
    kept: int
    paths: tuple[str, ...]
    contents: frozenset[str] = frozenset()
    problem: str = ""


def paths_of_others(drops: Iterable[Drop], removal: Removal) -> set[tuple[str, str]]:
    """(folder, path) of the files that a drop in use gives another person; a drop that cannot be listed gives
    none.
    """
    found = set[tuple[str, str]]()
    for drop in drops:
        if drop.status == Status.REJECTED:
            continue
        with suppress(UserError, OSError):
            folder = split_manifest(drop.address)[0]
            for record in list_records(open_source(drop.address, drop.layout), drop, NOBODY):
                if record.person and not removal.is_label(record.person) and record.person != removal.name:
                    found.add((folder, record.path))
    return found


def images_in_drops(
    drops: Sequence[Drop], removal: Removal, claimed: Collection[tuple[str, str]] = ()
) -> list[DropImages]:
    """The person's images in each drop of the ledger that has some or cannot be listed.

    claimed: (folder, path) of files that show others, whatever a rejected drop says (`paths_of_others`).
    """
    found = []
    for drop in drops:
        try:
            source = open_source(drop.address, drop.layout)
            records = list_records(source, drop, NOBODY)
            gone = [one for one in records if removal.is_label(one.person) or one.person == removal.name]
            if drop.status == Status.REJECTED:
                folder = split_manifest(drop.address)[0]
                gone = [one for one in gone if (folder, one.path) not in claimed]
            contents = {_content(source, one) for one in gone} - {None}
        except (UserError, OSError) as error:
            found.append(DropImages(drop, None, 0, (), problem=str(error)))
            continue
        others = [path for path, _ in source.refused if removal.is_path(path)]
        others += [path for path in source.ignored if removal.is_path(path)]
        if gone or others:
            paths = tuple(sorted({one.path for one in gone} | set(others)))
            found.append(DropImages(drop, source, len(records) - len(gone), paths, frozenset(contents)))
    return found


def _content(source: Source, record: ImageRecord) -> str | None:
    """SHA-256 of an image as it is in the drop; None where it cannot be read."""
    try:
        return hashlib.sha256(source.read(record)).hexdigest()
    except BadImage:
        return None


# Removal.


def obstacle(about: DropImages) -> str:
    """Why the person's images cannot be removed from a drop, as far as it is known before; "" if they can."""
    if about.drop.layout == "builtin":
        return "the program draws them"
    if not isinstance(about.source, CameraSource):
        return f"they are the authors' data, layout {about.drop.layout}"
    tree = about.source.tree
    if isinstance(tree, LocalTree):
        folders = {(tree.root / path).parent for path in about.paths}
        closed = sorted(str(folder) for folder in folders if not os.access(folder, os.W_OK))
        return f"no permission to write to {closed[0]}" if closed else ""
    return ""


def clean_drop(about: DropImages, removal: Removal) -> str:
    """Remove the person's images from a drop that may be written to; a line that says what was done."""
    count, drop = len(about.paths), about.drop
    if about.problem:
        return f"not reached: {drop}: {about.problem}"
    if why := obstacle(about):
        return f"left: {drop}: {count} files: {why}; ingest leaves them out"
    try:
        _clean_manifests(about, removal)
        if isinstance(about.source.tree, LocalTree):
            _remove_files(about.source.tree.root, about.paths)
        else:
            for path in about.paths:
                about.source.tree.store.remove(path)
    except (OSError, UserError) as error:
        return f"left: {drop}: {count} files: not allowed to remove them ({error}); ingest leaves them out"
    return f"{drop}: {count} files removed"


def _remove_files(root: Path, paths: Iterable[str]) -> None:
    for path in paths:
        (root / path).unlink(missing_ok=True)
        for folder in (root / path).parents:
            if folder == root:
                break
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _clean_manifests(about: DropImages, removal: Removal) -> None:
    """Take the person's rows out of the drop's manifest."""
    source, (folder, _) = about.source, split_manifest(about.drop.address)
    files = source.tree.files()
    for name in map(files.real_path, source.manifests):
        if name not in files.entries:
            continue
        data = source.tree.read(files.entries[name])
        new = _without_rows(data, name, removal, lambda path: files.real_path(path) in about.paths)
        if isinstance(source.tree, LocalTree):
            with atomic_write(Path(folder) / name) as temporary:
                temporary.write_bytes(new)
        else:
            from tempfile import TemporaryDirectory

            with TemporaryDirectory() as temporary:
                path = Path(temporary, "manifest")
                path.write_bytes(new)
                source.tree.store.put(name, path)


def _without_rows(data: bytes, name: str, removal: Removal, is_removed: Callable[[str], bool]) -> bytes:
    """A manifest without the rows whose files are removed. Another row of the person, of a file that a drop
    in use gives somebody else (`csdn relabel`), stays without the name.
    """
    if name.lower().endswith(".parquet"):
        table = pq.read_table(io.BytesIO(data))
        table = table.filter(
            pa.array([not is_removed(path or "") for path in table["path"].to_pylist()], pa.bool_())
        )
        people = [None if one is None else str(one) for one in table["person"].to_pylist()]
        if any(map(removal.is_label, people)):
            renamed = pa.array(
                [removal.name if removal.is_label(one) else one for one in people], pa.string()
            )
            table = table.set_column(table.schema.get_field_index("person"), "person", renamed)
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        return buffer.getvalue()
    text = read_text(data, name)
    delimiter = delimiter_of(text)
    rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    path, person = (rows[0].index(column) for column in ("path", "person"))
    kept = [row for row in rows[1:] if row and not is_removed(from_cell(row[path]))]
    for row in (row for row in kept if removal.is_label(from_cell(row[person]))):
        row[person] = removal.name
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows([rows[0], *kept])
    return out.getvalue().encode()


# What is left.


def left_in_drop(
    drop: Drop, removal: Removal, shows: Shows, unreachable: list[str]
) -> Iterator[tuple[str, str]]:
    """(path, NAME or IMAGE) of what is left in a drop, by label and by content; nothing in drops that the
    program draws, which have no images that could be removed.
    """
    if drop.layout == "builtin":
        return
    try:
        source = open_source(drop.address, drop.layout)
        for name, data in _other_files(source):
            yield from ((name, what) for what in sorted(shows(data, name)))
        for record in list_records(source, drop, NOBODY):
            if removal.is_label(record.person) or removal.is_path(record.path):
                yield record.path, NAME
            elif _content(source, record) in removal.images:
                yield record.path, IMAGE
    except (UserError, OSError) as error:
        unreachable.append(str(error) if str(drop) in str(error) else f"{drop}: {error}")


def _other_files(source: Source) -> Iterator[tuple[str, bytes]]:
    """The files of a drop of cameras that are no images, such as its manifests."""
    if isinstance(source, CameraSource):
        for name, file in source.tree.files().entries.items():
            if kind_of(name) == Kind.NO_IMAGE:
                yield name, source.tree.read(file)
