"""`csdn forget --verify`: search every place that can be reached for a person's name and images.

The search does not trust what `csdn forget` did: it reads the files. A name counts where it stands as a word
in a text, a table, the head of a shard's or tensors' file, or Git's history; an image counts by the SHA-256
of its bytes, as a file, in a shard, or as a hash in a table. Pictures that were scaled or drawn anew (pages,
reports) are found by the name beside them only.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from csdn.data.storage import Store
from csdn.ingest.forgotten import FORGOTTEN
from csdn.params import Params
from csdn.privacy.drops import all_drops, left_in_drop
from csdn.privacy.objects import Objects, Remote
from csdn.privacy.places import shard_cache, user_cache
from csdn.privacy.rewrite import IMAGE, NAME, Removal
from csdn.retraining import git
from csdn.runtime.errors import UserError

SKIPPED = (".git", ".venv", "__pycache__")  # Git's history is searched by its objects
_HASH = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
# In a file that is not a text: what could be one, without the letters that random bytes make.
_TEXTS = re.compile(r"[^\x00-\x08\x0e-\x1f\x7f\ufffd]{3,}")


@dataclass(frozen=True)
class Trace:
    """Something of the person that is left: the place, the file in it, and what it is (NAME or IMAGE)."""

    place: str
    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.name}: {self.what}"


class Search:
    """What is searched for."""

    def __init__(self, removal: Removal) -> None:
        self.removal, self.names = removal, removal.names
        self.images = {bytes.fromhex(one) for one in removal.images}

    def in_bytes(self, data: bytes, name: str) -> set[str]:
        """What of the person is in a file's bytes; `name` is the file's."""
        found = {NAME} if self.names.are_in(name) else set()
        if hashlib.sha256(data).digest() in self.images:
            found.add(IMAGE)
        if data[:4] == b"PAR1" and (table := _read_table(data)) is not None:
            return found | self._in_table(table)
        if data[257:262] == b"ustar":
            return found | self._in_tar(data)
        text = _text_of(data)
        if self.names.are_in(text):
            found.add(NAME)
        # data/forgotten.json has the hashes, so that the images can be recognised.
        if not name.endswith(FORGOTTEN.name) and not self.removal.images.isdisjoint(_HASH.findall(text)):
            found.add(IMAGE)
        return found

    def _in_table(self, table: pa.Table) -> set[str]:
        facts = (
            text.decode(errors="replace") for pair in (table.schema.metadata or {}).items() for text in pair
        )
        found, texts = set[str](), list(facts)
        for field, column in zip(table.schema, table.columns, strict=True):
            if field.name.endswith("camera"):  # it may be called like the person
                continue
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
                column = pa.chunked_array(
                    [chunk.flatten() for chunk in column.chunks], column.type.value_type
                )
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                texts += [text for text in column.unique().to_pylist() if text]
            elif pa.types.is_fixed_size_binary(column.type):
                found |= {IMAGE} if self.images & set(column.to_pylist()) else set()
        hashes = {one for one in texts if len(one) == 64}
        if hashes & self.removal.images:
            found.add(IMAGE)
        if self.names.are_in("\n".join(texts)) or any(map(self.removal.is_label, texts)):
            found.add(NAME)
        return found

    def _in_tar(self, data: bytes) -> set[str]:
        found = set[str]()
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
                for member in tar:
                    if file := tar.extractfile(member):
                        found |= self.in_bytes(file.read(), member.name)
        except tarfile.TarError:
            pass
        return found


def _text_of(data: bytes) -> str:
    """A text file's text; of another file, which is slow to search, the parts that could be texts."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "\n".join(_TEXTS.findall(data.decode(errors="replace")))


def _read_table(data: bytes) -> pa.Table | None:
    """The table in a Parquet file's bytes; None where they are damaged, and searched as they are."""
    try:
        return pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError):
        return None


# Places of which the project does not know.
ELSEWHERE = (
    "other clones and forks of the Git repository, and their workspaces, caches and galleries",
    "backups and snapshots, and older versions of objects in buckets that keep versions",
    "exports, pages and tables that were copied elsewhere",
)


@dataclass(frozen=True)
class Result:
    """What is left, and which of the project's places could not be searched."""

    traces: list[Trace]
    unreachable: list[str]

    @property
    def lines(self) -> list[str]:
        lines = [f"left: {trace}" for trace in self.traces]
        if not lines:
            lines = ["nothing is left in the places that were searched"]
        return lines + [f"not reached: {line}" for line in (*self.unreachable, *ELSEWHERE)]

    @property
    def exit_code(self) -> int:
        """1 if something is left; 2 if a place of the project could not be searched; else 0."""
        return 1 if self.traces else 2 if self.unreachable else 0


def verify(
    root: Path,
    params: Params,
    removal: Removal,
    objects: Objects,
    missing: Iterable[str],
    galleries: Iterable[str] = (),
    note: Callable[[str], None] = lambda line: None,
) -> Result:
    """Search all places of a project for a person; missing: what the survey could not read, a line each."""
    search, unreachable = Search(removal), list(dict.fromkeys([*objects.unreachable, *missing]))
    places: list[tuple[str, Iterator[tuple[str, bytes]]]] = [
        ("the workspace", _files(root, unreachable, objects.cache)),
        ("DVC's cache", _files(objects.cache, unreachable)),
        *((f"the DVC remote {one.name}", _remote_objects(one, objects.temporary)) for one in objects.remotes),
        ("Git", _git_objects(root)),
    ]
    for address in (params.ingest.store, params.report.store, params.scaling.checkpoint_dir):
        if address:
            places.append((address, _files_at(address, unreachable)))
    if params.ingest.store:
        places.append((str(shard_cache(params)), _files(shard_cache(params), unreachable)))
    cached_galleries = user_cache() / "galleries"  # of galleries in object stores (csdn.search.gallery)
    places.append((str(cached_galleries), _files(cached_galleries, unreachable)))
    places += [(address, _files_at(address, unreachable)) for address in galleries]
    traces = list[Trace]()
    for place, files in places:
        note(f"searches {place}")
        traces += search_place(place, files, search, unreachable)
    for drop in all_drops(root, params)[0]:  # the caller knows what cannot be read
        note(f"searches {drop}")
        left = left_in_drop(drop, removal, search.in_bytes, unreachable)
        traces += [Trace(str(drop), name, what) for name, what in left]
    traces = _named_in_git(root, traces)
    return Result(traces, unreachable)


def search_place(
    place: str, files: Iterable[tuple[str, bytes]], search: Search, unreachable: list[str]
) -> Iterator[Trace]:
    """The traces in the files (name, bytes) of a place; if it fails half-way, it counts as not reached."""
    try:
        for name, data in files:
            yield from (Trace(place, name, what) for what in sorted(search.in_bytes(data, name)))
    except UserError as error:
        unreachable.append(f"{place}: {error}")


def _files(root: Path, unreachable: list[str], without: Path | None = None) -> Iterator[tuple[str, bytes]]:
    """(path below the root, bytes) of each file that can be read."""
    for folder, folders, files in os.walk(root):
        folders[:] = [one for one in folders if one not in SKIPPED and Path(folder, one) != without]
        for name in sorted(files):
            path = Path(folder, name)
            try:
                yield path.relative_to(root).as_posix(), path.read_bytes()
            except FileNotFoundError:  # a link to nothing, or removed meanwhile
                continue
            except OSError as error:
                unreachable.append(f"{path}: cannot be read ({error.strerror})")


def _remote_objects(remote: Remote, temporary: Path) -> Iterator[tuple[str, bytes]]:
    copy = temporary / "copy"
    for md5 in remote.all():
        remote.get(md5, copy)
        yield md5, copy.read_bytes()


def _files_at(address: str, unreachable: list[str]) -> Iterator[tuple[str, bytes]]:
    """The same for a folder or a prefix of an object store."""
    if "://" not in address:
        yield from _files(Path(address), unreachable)
        return
    store = Store(address)
    for found in store.objects():
        yield found.name, store.read(found)


# Git: every object that the repository has, reachable or not.


def _git_objects(root: Path) -> Iterator[tuple[str, bytes]]:
    """(hash and kind, content) of each commit, tag, tree and blob, one after the other."""
    command = ["git", "cat-file", "--batch-all-objects", "--batch", "--unordered"]
    with subprocess.Popen(command, cwd=root, env=git.environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None  # it is a pipe
        while head := process.stdout.readline():
            digest, kind, size = head.decode().split()
            data = process.stdout.read(int(size))
            process.stdout.read(1)
            if b'"salt"' in data and b'"labels"' in data:  # data/forgotten.json: it has the hashes of images
                data = re.sub(rb'"[0-9a-f]{64}"', b'""', data)
            yield f"{kind} {digest}", data
    if process.returncode:
        raise UserError(f"{root}: git cat-file failed ({process.returncode}): not all objects were searched")


def _named_in_git(root: Path, traces: list[Trace]) -> list[Trace]:
    """The traces, with the path and a commit of each blob in Git."""
    named = []
    for trace in traces:
        if trace.place == "Git" and trace.name.startswith("blob "):
            digest = trace.name.removeprefix("blob ")
            shown = git.run_git(
                *(root, "log", "--all", f"--find-object={digest}", "--format=%h", "--name-only", "-1")
            ).stdout.decode(errors="replace")
            parts = shown.split()
            where = (
                f"{parts[1]} (commit {parts[0]})"
                if len(parts) > 1
                else f"{digest[:12]}, which no ref reaches"
            )
            trace = Trace(trace.place, where, trace.what)
        named.append(trace)
    return named
