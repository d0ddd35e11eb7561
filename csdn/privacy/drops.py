"""A person in the drops: which images are the person's, and the search for what is left of them.

A drop is an entry of a ledger. Several may have the same folder, with other labels each (`csdn relabel`,
`csdn accept --labels`), so what is removed for one of them is missing in the others too.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from csdn.data.catalog import ImageRecord
from csdn.data.images import BadImage
from csdn.ingest.forgotten import NOBODY
from csdn.ingest.ledger import LEDGER, Drop, Status, list_records, parse_ledger, read_ledger
from csdn.ingest.sources import Source, open_source
from csdn.ingest.sources.cameras import (
    MANIFESTS,
    MARKER,
    CameraSource,
    ManifestRow,
    read_manifest,
    split_manifest,
)
from csdn.ingest.sources.tree import (
    FileEntry,
    Files,
    Kind,
    LocalTree,
    RemoteTree,
    Tree,
    is_system_file,
    kind_of,
)
from csdn.ingest.sync import sub_folders
from csdn.params import Params
from csdn.privacy.rewrite import IMAGE, NAME, Removal, person_of_path
from csdn.retraining import git
from csdn.runtime.errors import UserError

Shows = Callable[[bytes, str], Collection[str]]  # what of the person is in a file's bytes; its name
FileOf = str  # a file of a drop: `folder_of` the drop, /, and the path in it; one that ends in / is a folder
Listed = TypeVar("Listed", ImageRecord, FileEntry)

UNKNOWN = "unknown"  # in place of the id of a drop that no ledger has


def folder_of(drop: Drop) -> str:
    """The folder or prefix of a drop's files, without links; drops whose labels differ may share it, or have
    one inside it.
    """
    folder = split_manifest(drop.address)[0].rstrip("/")
    return folder if "://" in folder or drop.layout == "builtin" else os.path.realpath(folder)


def all_drops(root: Path, params: Params) -> tuple[list[Drop], list[str]]:
    """(the drops of the project, a line for each place that cannot be read).

    First those of the working tree's ledger, in order; then those of other branches' ledgers, here and at
    origin, and the folders of the watched places. The latter two count as rejected, because main uses
    nothing of them.
    """
    drops, problems = {drop.id: drop for drop in read_ledger(root / LEDGER)}, list[str]()
    branches = git.git(root, "for-each-ref", "--format=%(refname)", "refs/heads", "refs/remotes")
    for branch in branches.splitlines():
        if (text := git.file_at(root, branch, str(LEDGER))) is None:
            continue
        try:
            for drop in parse_ledger(text, f"{branch}:{LEDGER}"):
                drops.setdefault(drop.id, replace(drop, status=Status.REJECTED))
        except UserError as error:
            problems.append(str(error))
    known, watched = {folder_of(drop) for drop in drops.values()}, list[Drop]()
    for place in params.ingest.watch:
        try:
            found = (Drop(UNKNOWN, address, "cameras", Status.REJECTED) for address in sub_folders(place))
            watched += [drop for drop in found if folder_of(drop) not in known]
        except UserError as error:
            problems.append(str(error))
    return [*drops.values(), *watched], problems


# What of a person is in a drop.


@dataclass(frozen=True)
class DropImages:
    """What of a person is in a drop.

    paths: of the files to remove; those of other drops of the same folder are among them. rows: paths in the
    manifest where no file is. named: whether it calls an image the person's, even one that is another's.
    contents: SHA-256 of the images that are the person's. doubt: why it is not known whose its files are, so
    that none is removed; "" if known. problem: why the drop cannot be listed; "" where it can.
    """

    drop: Drop
    source: Source | None
    paths: frozenset[str] = frozenset()
    rows: frozenset[str] = frozenset()
    named: bool = False
    contents: frozenset[str] = frozenset()
    doubt: str = ""
    problem: str = ""


def paths_of_others(drops: Iterable[Drop], removal: Removal) -> set[FileOf]:
    """The files that drops in use give others; the first that gives a file to one person only decides.

    Any file of a drop in use that cannot be listed may be another's: the drop's folder is in the result.
    """
    others, own = set[FileOf](), set[FileOf]()
    for drop in sorted(drops, key=lambda drop: drop.status != Status.ACCEPTED):
        if drop.status == Status.REJECTED:
            continue
        folder, given = folder_of(drop), dict[bool, set[FileOf]]({True: set(), False: set()})
        try:
            for path, person in _people(*_listed_whole(drop)):
                if person:
                    given[_is_own(person, removal)].add(f"{folder}/{path}")
        except (UserError, OSError):
            others.add(f"{folder}/")
            continue
        if drop.layout != "builtin" and "://" not in folder:  # a link to a file shows what the file shows
            given[False] |= set(map(os.path.realpath, given[False]))
        own |= given[True] - given[False] - others
        others |= given[False] - given[True] - own
    return others


def _is_own(person: str, removal: Removal) -> bool:
    return removal.is_label(person) or person == removal.name


def labels_in_drops(drops: Iterable[Drop]) -> set[str]:
    """The labels of people in the drops that can be listed, in their manifests, and in corrected labels."""
    found = set[str]()
    for drop in drops:
        found |= set(drop.labels.values())
        with suppress(UserError, OSError):
            source = open_source(drop.address, drop.layout)
            found |= {record.person for record in drop_images(source, drop)}
            if isinstance(source, CameraSource):
                found |= {row.person for row, _ in _rows(source, source.tree.files())}
    return found


def images_in_drops(
    drops: Sequence[Drop],
    removal: Removal,
    claimed: Collection[FileOf] = (),
    copies: Collection[FileOf] = (),
) -> list[DropImages]:
    """The person's images in each drop that has some or cannot be listed.

    claimed: files that show others, whatever a rejected drop says (`paths_of_others`). copies: files with the
    person's images, whatever the drops say.
    """
    found = [_images_in(drop, removal, claimed, copies) for drop in drops]
    unclear = [place for place in claimed if place.endswith("/")]
    for n, one in enumerate(found):
        folder = f"{folder_of(one.drop)}/"
        place = next((place for place in unclear if folder.startswith(place) or place.startswith(folder)), "")
        if place and not one.problem:
            doubt = f"a drop in use of {place.rstrip('/')} cannot be listed, and may say whose they are"
            found[n] = replace(one, doubt=doubt, contents=frozenset())
    removed = {f"{folder_of(one.drop)}/{path}" for one in found if not one.doubt for path in one.paths}
    shared = [replace(one, paths=one.paths | _below(folder_of(one.drop), removed)) for one in found]
    return [one for one in shared if one.paths or one.rows or one.named or one.problem]


def _below(folder: str, files: Iterable[FileOf]) -> set[str]:
    """The paths in a folder of those files that are in it."""
    return {file.removeprefix(f"{folder}/") for file in files if file.startswith(f"{folder}/")}


def _images_in(
    drop: Drop, removal: Removal, claimed: Collection[FileOf], copies: Collection[FileOf]
) -> DropImages:
    folder, rows = folder_of(drop), set[str]()
    try:
        if drop.id == UNKNOWN and Path(drop.address).is_symlink():
            raise UserError("a link to another place, which `csdn sync` does not follow")
        source, records, files = _listed_whole(drop)
        paths = {path for path, person in _people(source, records, files) if _is_own(person, removal)}
        if isinstance(source, CameraSource):
            unlisted = _unlisted(files, records)
            paths |= {one.path for one in unlisted if _sha256(source.tree.read, one) in removal.images}
            rows = {
                path
                for row, path in _rows(source, files)
                if removal.is_label(row.person) and not _is_there(row, path, source, files)
            }
        paths = {path for path in paths if f"{folder}/{path}" not in claimed}
        own = (one for one in records if one.path in paths and _is_own(one.person, removal))
        contents = {_sha256(source.read, one) for one in own} - {""}
    except (UserError, OSError) as error:
        return DropImages(drop, None, problem=str(error))
    paths |= {one.path for one in records if f"{folder}/{one.path}" in copies}
    named = any(removal.is_label(one.person) for one in records)
    return DropImages(drop, source, frozenset(paths), frozenset(rows), named, frozenset(contents))


def drop_images(source: Source, drop: Drop) -> list[ImageRecord]:
    """The images of a drop, forgotten or not; a drop, or a camera of it, may have none any more, which ingest
    calls an error. Raises UserError.
    """
    if not isinstance(source, CameraSource):
        return list_records(source, drop, NOBODY)
    return [replace(one, person=drop.labels.get(one.path, one.person)) for one in source.images()]


def _listed_whole(drop: Drop) -> tuple[Source, list[ImageRecord], Files]:
    """The source of a drop, its images, and all files of the layout `cameras`.

    Raises UserError, also where nothing says that the names of folders are those of people: in a folder that
    is no complete drop, and without the manifest that the drop names.
    """
    source = open_source(drop.address, drop.layout)
    records = drop_images(source, drop)
    if not isinstance(source, CameraSource):
        return source, records, Files({}, {})
    files, name = source.tree.files(), split_manifest(drop.address)[1]
    if name and not _manifest(source, files):
        raise UserError(f"{name} is not there, which says whose the images are")
    if not source.complete:
        raise UserError(f"not a complete drop: no {MARKER}, {' or '.join(MANIFESTS)}")
    return source, records, files


def _people(source: Source, records: Sequence[ImageRecord], files: Files) -> Iterator[tuple[str, str]]:
    """(path, person) of each file of which a listed drop says whom it shows: images, and files that ingest
    refuses or ignores.
    """
    yield from ((one.path, one.person) for one in records)
    if not isinstance(source, CameraSource):
        return
    listed = {one.path for one in records}
    if not _manifest(source, files):
        yield from ((path, person_of_path(path)) for path, _ in source.refused)
        yield from ((path, person_of_path(path)) for path in source.ignored)
        return
    for row, path in _rows(source, files):  # which may name any path of the machine, and the manifest itself
        path = posixpath.normpath(path) if row.refusal else path
        there = path in files.entries or path in files.refused
        if there and path not in listed and kind_of(path) != Kind.NO_IMAGE:
            yield path, row.person


def _unlisted(files: Files, records: Iterable[ImageRecord]) -> Iterator[FileEntry]:
    """The files of a drop that are none of its images: manifests, notes, images that no manifest lists."""
    listed = {record.path for record in records}
    return (file for path, file in files.entries.items() if path not in listed)


def _manifest(source: CameraSource, files: Files) -> str | None:
    """The manifest that counts; None where the folders say whose the images are."""
    return next((path for path in map(files.real_path, source.manifests) if path in files.entries), None)


def _rows(source: CameraSource, files: Files) -> Iterator[tuple[ManifestRow, str]]:
    """The rows of the manifest that counts, with the path of the file that each means."""
    if name := _manifest(source, files):
        for row in read_manifest(source.tree.read(files.entries[name]), name):
            yield row, files.real_path(row.path)


def _is_there(row: ManifestRow, path: str, source: CameraSource, files: Files) -> bool:
    """Whether the file of a row is in the drop, hidden or not."""
    if path in files.entries or path in files.refused or path in files.ignored:
        return True
    return isinstance(source.tree, LocalTree) and not row.refusal and os.path.lexists(source.tree.root / path)


def _sha256(read: Callable[[Listed], bytes], one: Listed) -> str:
    """SHA-256 of a file as it is in the drop; "" where it cannot be read."""
    try:
        return hashlib.sha256(read(one)).hexdigest()
    except BadImage:
        return ""


# What is left.


def left_in_drop(
    drop: Drop, removal: Removal, shows: Shows, unreachable: list[str]
) -> Iterator[tuple[str, str]]:
    """(path, NAME or IMAGE) of what is left in a drop, by label and by content, whether a manifest lists the
    file or not; nothing in drops that the program draws, which have no images that could be removed.
    """
    if drop.layout == "builtin":
        return
    try:
        source = open_source(drop.address, drop.layout)
        records = drop_images(source, drop)
        for record in records:
            if removal.is_label(record.person) or removal.is_path(record.path):
                yield record.path, NAME
                continue
            content = _sha256(source.read, record)
            if content in removal.images:
                yield record.path, IMAGE
            elif not content:
                unreachable.append(f"{drop}: {record.path}: cannot be read")
        if not isinstance(source, CameraSource):
            return
        files = source.tree.files()
        listed = {one.path for one in records}
        for row, path in _rows(source, files):
            if _is_own(row.person, removal) and path not in listed:
                yield row.path, NAME
        for file in _unlisted(files, records):
            found = {*shows(source.tree.read(file), file.path)}
            found |= {NAME} if removal.is_path(file.path) else set()
            yield from ((file.path, what) for what in sorted(found))
        yield from ((path, NAME) for path in files.refused if removal.is_path(path))
        for path, data in _hidden(source.tree, files, unreachable):
            shown = "/".join(part for part in path.split("/") if not is_system_file(part))
            found = {*shows(data, path)} | ({NAME} if removal.is_path(shown) else set())
            yield from ((path, what) for what in sorted(found))
    except (UserError, OSError, BadImage) as error:
        unreachable.append(str(error) if str(drop) in str(error) else f"{drop}: {error}")


def _hidden(tree: Tree, files: Files, unreachable: list[str]) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of the files of a drop that no layout sees, such as those in a recycle bin; no bytes of
    links.
    """
    if isinstance(tree, RemoteTree):
        for name in files.ignored:
            if found := tree.store.find(name):
                yield name, tree.store.read(found)
        return
    assert isinstance(tree, LocalTree)  # there are no others
    for name in files.ignored:
        top = tree.root / name
        paths = [top]
        if top.is_dir() and not top.is_symlink():
            walk = os.walk(top, onerror=lambda error: unreachable.append(f"{tree.root}: {error}"))
            paths = [Path(folder, one) for folder, _, names in walk for one in sorted(names)]
        for path in paths:
            try:
                special = path.is_symlink() or (path.exists() and not path.is_file())
                yield path.relative_to(tree.root).as_posix(), b"" if special else path.read_bytes()
            except OSError as error:
                unreachable.append(f"{path}: cannot be read ({error.strerror})")
