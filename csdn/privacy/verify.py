"""`csdn forget --verify`: search every place that can be reached for a person's name and images.

The search does not trust what `csdn forget` did: it reads the files. A name counts where it stands as a word
in a text, a table, the head of a shard's or tensors' file, or Git's history; an image counts by the SHA-256
of its bytes, as a file, in a shard, or as a hash in a table. Pictures that were scaled or drawn anew (pages,
reports) are found by the name beside them only.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from csdn.data.storage import Store
from csdn.ingest.forgotten import FORGOTTEN
from csdn.params import Params
from csdn.privacy.drops import all_drops, left_in_drop
from csdn.privacy.names import OF_PEOPLE
from csdn.privacy.objects import Objects, Remote
from csdn.privacy.places import files_below, shard_cache, user_cache
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
    """What is searched for. sure: short names only where they surely are names, for removing files."""

    def __init__(self, removal: Removal, sure: bool = False) -> None:
        self.removal, self.names, self.sure = removal, removal.names, sure
        self.images = {bytes.fromhex(one) for one in removal.images}

    def in_bytes(self, data: bytes, name: str) -> set[str]:
        """What of the person is in a file's bytes; `name` is the file's."""
        found = {NAME} if self.names.are_in(f"/{name}/", self.sure) else set()
        if hashlib.sha256(data).digest() in self.images:
            found.add(IMAGE)
        if data[:4] == b"PAR1":
            with suppress(pa.ArrowException, OSError, ValueError):  # damaged: it is searched as it is
                return found | self._in_table(pq.read_table(io.BytesIO(data)))
        if b"ustar" in data:
            found |= self._in_tar(data)
        text, is_text = _text_of(data)
        if self.names.are_in(text, self.sure or not is_text):
            found.add(NAME)
        # data/forgotten.json has the hashes, so that the images can be recognised.
        if not name.endswith(FORGOTTEN.name) and self._hash_in(text):
            found.add(IMAGE)
        return found

    def _hash_in(self, text: str) -> bool:
        return not self.removal.images.isdisjoint(_HASH.findall(text))

    def _in_table(self, table: pa.Table) -> set[str]:
        found = set[str]()
        texts = [
            text.decode(errors="replace") for pair in (table.schema.metadata or {}).items() for text in pair
        ]
        for field, column in zip(table.schema, table.columns, strict=True):
            texts += [field.name, str(field.type)]  # the type has the names of inner fields
            if field.name.endswith("camera"):  # it may be called like the person
                continue
            for value in _values_of(field.name, column):
                if not isinstance(value, bytes):
                    texts.append(str(value))
                elif len(value) == 32:
                    found |= {IMAGE} if value in self.images else set()
                else:
                    found |= self.in_bytes(value, "")
        text = "\n".join(texts)
        if self._hash_in(text):
            found.add(IMAGE)
        if self.names.are_in(text, self.sure) or any(map(self.removal.is_label, texts)):
            found.add(NAME)
        return found

    def _in_tar(self, data: bytes) -> set[str]:
        """What is in the members that can be read, also behind a damaged head and in a second, joined tar."""
        found = set[str]()
        with (
            suppress(tarfile.TarError),
            tarfile.open(fileobj=io.BytesIO(data), mode="r:", ignore_zeros=True) as tar,
        ):
            for member in tar:
                if file := tar.extractfile(member):
                    found |= self.in_bytes(file.read(), member.name)
        return found


def _values_of(name: str, column: pa.ChunkedArray) -> Iterator[Any]:
    """The different values of a column that could name a person or an image, of whatever type. Numbers are
    given only of a column whose name says that it is about people.
    """
    while True:
        kind = column.type
        if pa.types.is_dictionary(kind):
            column = column.cast(kind.value_type)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            column = pa.chunked_array([chunk.flatten() for chunk in column.chunks], kind.value_type)
        else:
            break
    if pa.types.is_nested(kind):
        yield from {one for value in column.to_pylist() for one in _inner_values(name, value)}
    elif not pa.types.is_primitive(kind) or OF_PEOPLE.search(name.casefold()):
        yield from (one for one in column.unique().to_pylist() if one is not None)


def _inner_values(name: str, value: Any) -> Iterator[Any]:
    """The same for a value of a struct, a map or a list in them."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _inner_values(key, one)
    elif isinstance(value, tuple):  # of a map
        yield value[0]
        yield from _inner_values(str(value[0]), value[1])
    elif isinstance(value, list):
        for one in value:
            yield from _inner_values(name, one)
    elif isinstance(value, str | bytes) or (value is not None and OF_PEOPLE.search(name.casefold())):
        yield value


def _text_of(data: bytes) -> tuple[str, bool]:
    """(a text file's text, True); of another file, which is slow to search, the parts that could be texts."""
    try:
        return data.decode(), True
    except UnicodeDecodeError:
        return "\n".join(_TEXTS.findall(data.decode(errors="replace"))), False


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
        *((f"the DVC remote {one.name}", _remote_objects(one, objects.temporary)) for one in objects.remotes),
        ("Git", _git_objects(root)),
    ]
    if objects.cache.exists() or not objects.cache.is_relative_to(root.resolve()):  # a new clone has none
        places.append(("DVC's cache", _files(objects.cache, unreachable)))
    for address in (params.ingest.store, params.report.store, params.scaling.checkpoint_dir):
        if address:
            places.append((address, _files_at(address, unreachable)))
    # Caches of what is in object stores (csdn.data.shard_cache, csdn.search.gallery), if there are any yet.
    caches = [shard_cache(params)] if params.ingest.store else []
    for cache in (*caches, user_cache() / "galleries"):
        if cache.exists():
            places.append((str(cache), _files(cache, unreachable)))
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
    for folder, name in files_below(root, SKIPPED, unreachable, without):
        path = Path(folder, name)
        try:
            yield path.relative_to(root).as_posix(), path.read_bytes()
        except FileNotFoundError:  # removed meanwhile, or a link to nothing, as those to what DVC removed
            target = path.resolve()
            if path.is_symlink() and not (without and target.is_relative_to(without)):
                unreachable.append(f"{path}: a link to {target}, where nothing is")
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
            if kind == "tree":  # mode, name, NUL, and a hash in bytes: the names are left
                data = re.sub(rb"\d+ ([^\0]+)\0.{%d}" % (len(digest) // 2), rb"/\1/\n", data, flags=re.DOTALL)
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
