"""The removal of a person's images from the drops, where it is allowed.

csdn.privacy.drops says which they are.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from csdn.data.outputs import from_cell
from csdn.ingest.forgotten import Forgotten, without_forgotten
from csdn.ingest.ledger import Drop, Status
from csdn.ingest.sources import Source
from csdn.ingest.sources.cameras import CameraSource, read_manifest
from csdn.ingest.sources.tree import LocalTree, RemoteTree
from csdn.ingest.sync import drop_fingerprint
from csdn.privacy.drops import DropImages, drop_images
from csdn.privacy.rewrite import Removal
from csdn.runtime.documents import delimiter_of, read_text
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_write


def obstacle(about: DropImages) -> str:
    """Why the person's images cannot be removed from a drop, as far as it is known before; "" if they can."""
    if about.drop.layout == "builtin":
        return "the program draws them"
    if not isinstance(about.source, CameraSource):
        return f"they are the authors' data, layout {about.drop.layout}"
    if about.doubt:
        return about.doubt
    tree = about.source.tree
    if isinstance(tree, LocalTree):
        changed = [tree.root / path for path in (*about.paths, *about.source.manifests)]
        folders = {path.parent for path in changed if path.exists()}
        closed = sorted(str(folder) for folder in folders if not os.access(folder, os.W_OK))
        return f"no permission to write to {closed[0]}" if closed else ""
    return ""


def present_listing(about: DropImages, drop: Drop, forgotten: Forgotten, name: str) -> Drop:
    """A drop with the hash of its listing after the removal; rejected where no image is left.

    about: as the drop is before. drop: its entry afterwards. forgotten: with the person, whose tombstone is
    `name`. A drop that is not what its entry named before, because somebody has changed it, keeps the hash,
    so that ingest says so. Raises UserError.
    """
    if about.source is None:
        return drop
    others = replace(forgotten, people=tuple(one for one in forgotten.people if one.name != name))
    gone = frozenset[str]() if obstacle(about) else about.paths | about.rows
    new = _fingerprint(about.source, drop, forgotten, gone)
    if new == drop.fingerprint or drop.fingerprint != _fingerprint(about.source, about.drop, others):
        return drop
    if new:
        return replace(drop, listing=new)
    if drop.status == Status.REJECTED:
        return drop
    return replace(drop, status=Status.REJECTED, reason="all of its images are of a forgotten person")


def _fingerprint(
    source: Source, drop: Drop, forgotten: Forgotten, gone: Collection[str] = frozenset()
) -> str:
    """The hash of a drop's listing without forgotten people and the files `gone`; "": no image is left."""
    records = without_forgotten(drop_images(source, drop), source.refused, forgotten)
    records = [one for one in records if one.path not in gone]
    source.refused[:] = [one for one in source.refused if one[0] not in gone]
    return drop_fingerprint(source, records, drop.address) if records else ""


def clean_drops(drops: Sequence[DropImages], removal: Removal) -> Iterator[str]:
    """Remove the person's images from the drops that may be written to; yields a line for each.

    The rows of all manifests go first, because a row without its file would change a drop's listing. Files
    that no row names any more are found by their content, if this call is killed before they are removed.
    """
    failed = [_without_change(about) or _tried(_clean_manifests, about, removal) for about in drops]
    for about, line in zip(drops, failed, strict=True):
        yield line or _tried(_remove_files, about) or f"{about.drop}: {len(about.paths)} files removed"
        if not line and (why := _cannot_be_listed(about)):
            yield f"note: `csdn sync` will call {about.drop} changed: {why}"


def _cannot_be_listed(about: DropImages) -> str:
    """Why ingest cannot list what is left of a drop, until somebody repairs or takes out other files."""
    try:
        if about.source and drop_images(about.source, about.drop):
            about.source.listing()
    except UserError as error:
        return str(error)
    return ""


def _without_change(about: DropImages) -> str:
    """The line for a drop that is left as it is; "" for others."""
    if about.problem:
        return f"not reached: {about.drop}: {about.problem}"
    why = obstacle(about)
    return f"left: {about.drop}: {len(about.paths)} files: {why}; ingest leaves them out" if why else ""


def _tried(change: Callable[..., None], about: DropImages, *more: Removal) -> str:
    """The line for a drop that cannot be changed in this way; "" where it has been."""
    try:
        change(about, about.source, *more)
    except (OSError, UserError) as error:
        return (
            f"left: {about.drop}: {len(about.paths)} files: not allowed to remove them ({error}); "
            "ingest leaves them out"
        )
    return ""


def _remove_files(about: DropImages, source: CameraSource) -> None:
    tree = source.tree
    for path in sorted(about.paths):
        if isinstance(tree, RemoteTree):
            tree.store.remove(path)
            continue
        assert isinstance(tree, LocalTree)  # there are no others
        file = tree.root / path
        if file.is_dir() and not file.is_symlink():  # such as @eaDir, with thumbnails
            shutil.rmtree(file)
        file.unlink(missing_ok=True)
        for folder in file.parents:
            if folder == tree.root:
                break
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _clean_manifests(about: DropImages, source: CameraSource, removal: Removal) -> None:
    """Take the rows of the removed files out of the drop's manifests."""
    tree, gone = source.tree, about.paths | about.rows
    files = tree.files()
    for name in map(files.real_path, source.manifests):
        if name not in files.entries:
            continue
        data = tree.read(files.entries[name])
        new = _without_rows(data, name, removal, lambda path: files.real_path(path) in gone)
        if new == data:
            continue
        if isinstance(tree, RemoteTree):
            with TemporaryDirectory() as folder:
                path = Path(folder, "manifest")
                path.write_bytes(new)
                tree.store.put(name, path)
            continue
        assert isinstance(tree, LocalTree)  # there are no others
        with atomic_write(tree.root / name) as temporary:
            temporary.write_bytes(new)


def _without_rows(data: bytes, name: str, removal: Removal, is_removed: Callable[[str], bool]) -> bytes:
    """A manifest without the rows whose files are removed. Another row of the person, of a file that a drop
    in use gives somebody else (`csdn relabel`), stays without the name.
    """
    kept = [not is_removed(row.path) for row in read_manifest(data, name)]
    if name.lower().endswith(".parquet"):
        table = pq.read_table(io.BytesIO(data)).filter(pa.array(kept, pa.bool_()))
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
    header, *rows = (row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row)
    person = header.index("person")
    rows = [row for row, is_kept in zip(rows, kept, strict=True) if is_kept]
    for row in (row for row in rows if removal.is_label(from_cell(row[person]))):
        row[person] = removal.name
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])
    return out.getvalue().encode()
