"""DVC's objects of all versions: where dvc.lock of any commit leads, and what replaces it.

DVC keeps each file under the MD5 of its bytes, in the cache and in remotes alike (`files/md5/ab/cdef...`),
and a folder as a list of its files (`....dir`):
https://dvc.org/doc/user-guide/project-structure/internal-files. A version names objects by its dvc.lock,
which is in Git and cannot change. So a replaced object is named in data/forgotten.json, by the hash of the
old one, and csdn.retraining.versions reads dvc.lock with that.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csdn.retraining.dvc import cache_folder, config_of, remotes
from csdn.runtime.documents import parse_yaml
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_write
from csdn.runtime.sanitize import redact

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

LAYOUT = "files/md5"
Values = dict[str, Any]  # of an output in dvc.lock: md5, size and, of a folder, nfiles


@dataclass(frozen=True)
class Remote:
    """A DVC remote: its name, its address for people, and how to reach it."""

    name: str
    address: str
    filesystem: AbstractFileSystem
    root: str

    def path(self, md5: str) -> str:
        return f"{self.root}/{LAYOUT}/{md5[:2]}/{md5[2:]}"

    def has(self, md5: str) -> bool:
        self.filesystem.invalidate_cache()  # other clones write too
        return self._ask(lambda: self.filesystem.exists(self.path(md5)))

    def get(self, md5: str, target: Path) -> None:
        self._ask(lambda: self.filesystem.get_file(self.path(md5), str(target)))

    def put(self, md5: str, source: Path) -> None:
        if not self.has(md5):
            self._ask(lambda: self.filesystem.makedirs(self.path(md5).rpartition("/")[0], exist_ok=True))
            self._ask(lambda: self.filesystem.put_file(str(source), self.path(md5)))

    def remove(self, md5: str) -> None:
        with suppress(FileNotFoundError):
            self._ask(lambda: self.filesystem.rm_file(self.path(md5)))

    def all(self) -> list[str]:
        """The hashes of all objects."""
        self.filesystem.invalidate_cache()
        found = self._ask(lambda: self.filesystem.find(f"{self.root}/{LAYOUT}"))
        return sorted("".join(path.split("/")[-2:]) for path in found)

    def _ask(self, request: Any) -> Any:
        try:
            return request()
        except FileNotFoundError:
            raise
        except Exception as error:  # of many libraries
            raise UserError(f"the DVC remote {self.name} ({self.address}): {redact(str(error))}") from None


def open_remotes(project: Path) -> tuple[list[Remote], list[str]]:
    """(the project's DVC remotes that can be reached, a line for each that cannot)."""
    from dvc.fs import get_cloud_fs

    found, missing = [], []
    for name in remotes(project):
        config = config_of(project)
        address = redact(str(config["remote"][name].get("url", "no address")))
        try:
            if config["remote"][name].get("version_aware") or config["remote"][name].get("worktree"):
                raise UserError("keeps versions in the bucket's own way, which this command does not read")
            kind, options, root = get_cloud_fs(config, name=name)
            remote = Remote(name, address, kind(**options).fs, root.rstrip("/"))
            remote.has("0" * 32)
        except Exception as error:
            missing.append(f"the DVC remote {name} ({address}): {redact(str(error))}")
        else:
            found.append(remote)
    return found, missing


class Objects:
    """The objects in the cache of a project and in its remotes. temporary: a folder for copies of what only a
    remote has.
    """

    def __init__(self, project: Path, temporary: Path) -> None:
        self.project, self.temporary = project, temporary

    @cached_property
    def cache(self) -> Path:
        return cache_folder(self.project) / LAYOUT

    @cached_property
    def _opened(self) -> tuple[list[Remote], list[str]]:
        return open_remotes(self.project)

    @property
    def remotes(self) -> list[Remote]:
        return self._opened[0]

    @property
    def unreachable(self) -> list[str]:
        return self._opened[1]

    def cached(self, md5: str) -> Path:
        return self.cache / md5[:2] / md5[2:]

    def path(self, md5: str) -> Path | None:
        """Where an object lies on this machine, which may be a copy of a remote's; None if nobody has it."""
        for path in (self.cached(md5), self.temporary / md5):
            if path.exists():
                return path
        for remote in self.remotes:
            with suppress(FileNotFoundError):
                remote.get(md5, self.temporary / md5)
                return self.temporary / md5
        return None

    def files_of(self, md5: str) -> dict[str, str] | None:
        """Path -> MD5 of the files of a folder; None if nobody has the list."""
        if (path := self.path(md5)) is None:
            return None
        return {one["relpath"]: one["md5"] for one in json.loads(path.read_bytes())}

    def add(self, path: Path, like: str) -> str:
        """Keep a file's bytes in the cache, and in those remotes that have the object `like`; its MD5."""
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, _md5).hexdigest()
        return self._keep(md5, path, like)

    def add_folder(self, files: Mapping[str, str], like: str) -> str:
        """`add` for a folder of files that were added."""
        entries = [{"md5": md5, "relpath": path} for path, md5 in sorted(files.items())]
        data = json.dumps(entries, sort_keys=True).encode()  # as DVC writes it
        md5 = f"{_md5(data).hexdigest()}.dir"
        path = self.temporary / md5
        path.write_bytes(data)
        return self._keep(md5, path, like)

    def _keep(self, md5: str, path: Path, like: str) -> str:
        cached = self.cached(md5)
        if not cached.exists():
            with atomic_write(cached) as temporary:
                shutil.copyfile(path, temporary)
                temporary.chmod(0o444)
        for remote in self.remotes:
            if remote.has(like):
                remote.put(md5, cached)
        return md5


def _md5(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)


# dvc.lock.


def outputs_of(lock: bytes, source: str) -> dict[str, Values]:
    """Path -> values of every output in a dvc.lock; older formats of DVC (without `schema`) have none."""
    value = parse_yaml(lock, source)
    stages = value.get("stages", {}) if isinstance(value, dict) else {}
    return {out["path"]: out for stage in stages.values() for out in stage.get("outs", ()) if out.get("md5")}


def folder_size(objects: Objects, files: Mapping[str, str]) -> int:
    """Bytes of the files of a folder, as dvc.lock names them."""
    return sum(path.stat().st_size for md5 in files.values() if (path := objects.path(md5)) is not None)


def locks_of(project: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every dvc.lock: that of the working tree, and each in the history of any ref."""
    from csdn.retraining import git

    if (project / "dvc.lock").exists():
        yield "dvc.lock", (project / "dvc.lock").read_bytes()
    seen = set()
    for commit in git.git(project, "rev-list", "--all", "--full-history", "--", "dvc.lock").split():
        content = git.file_at(project, commit, "dvc.lock")
        if content is not None and content not in seen:
            seen.add(content)
            yield f"dvc.lock in commit {commit[:12]}", content


# What somebody keeps with DVC beside the pipeline: `dvc add`, and pipelines in folders.

_MD5 = re.compile(rb"\bmd5: *['\"]?([0-9a-f]{32}(?:\.dir)?)\b")


def own_files(project: Path) -> Iterator[bytes]:
    """The content of every `*.dvc` file and dvc.lock in a folder: of the working tree, and of any commit."""
    from csdn.retraining import git

    for folder, folders, files in os.walk(project):
        folders[:] = [name for name in folders if name not in (".git", ".dvc", ".venv", ".state", ".runs")]
        for name in files:
            if name.endswith(".dvc") or (name == "dvc.lock" and Path(folder) != project):
                yield Path(folder, name).read_bytes()
    patterns = ("*.dvc", "*/dvc.lock")
    listed = git.git(project, "rev-list", "--all", "--full-history", "--objects", "--", *patterns)
    for digest, _, name in (line.partition(" ") for line in listed.splitlines()):
        if name.endswith((".dvc", "/dvc.lock")):
            yield git.run_git(project, "cat-file", "blob", digest).stdout


def own_objects(content: bytes) -> set[str]:
    """The hashes that such a file names, in any format of DVC."""
    return {found.decode() for found in _MD5.findall(content)}
