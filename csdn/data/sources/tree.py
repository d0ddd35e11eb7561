"""The files under a folder or an s3:// prefix, never leaving it: layouts of files read through this."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import fsspec

from csdn.data.images import BadImage
from csdn.errors import UserError
from csdn.safe import has_credentials, without_credentials


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A regular file: `path` below the root with `/`, `size` in bytes, `etag` where the store gives one."""

    path: str
    size: int
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Files:
    """All files below a root, by path, and what was refused: path -> reason."""

    entries: dict[str, FileEntry]
    refused: dict[str, str]


class Tree(Protocol):
    def files(self) -> Files: ...
    def read(self, path: str) -> bytes: ...


def open_tree(address: str) -> Tree:
    """The tree at a local folder or an `s3://` prefix; raises UserError for any other kind of address."""
    _refuse_credentials(address)
    scheme, separator, _ = address.partition("://")
    if not separator:
        return LocalTree(Path(address))
    if scheme == "s3":
        return RemoteTree(address)
    raise UserError(f"{address}: {scheme}:// is not supported; give a local folder or an s3:// prefix")


def _refuse_credentials(address: str) -> None:
    if has_credentials(address):
        raise UserError(
            f"{without_credentials(address)}: the address has a key or password in it, which the ledger "
            "would put into Git. Keys belong in the environment, or in ~/.aws/credentials"
        )


class LocalTree:
    """A local folder. Links to folders are not followed, links to files only where they stay inside."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def files(self) -> Files:
        if not self.root.is_dir():
            raise UserError(f"{self.root}: no such folder; is the path right, and the disk mounted?")
        files = Files({}, {})
        inside = os.path.realpath(self.root)
        try:
            for entry, path in self._walk():
                reason = _refusal(entry, path, inside)
                if reason:
                    files.refused[_printable(path)] = reason
                else:
                    files.entries[path] = FileEntry(path, entry.stat().st_size)
        except OSError as error:
            raise UserError(f"{self.root}: cannot be listed: {error}") from error
        return files

    def _walk(self) -> Iterator[tuple[os.DirEntry[str], str]]:
        folders = [(str(self.root), "")]
        while folders:
            folder, prefix = folders.pop()
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append((entry.path, f"{prefix}{entry.name}/"))
                    else:
                        yield entry, prefix + entry.name

    def read(self, path: str) -> bytes:
        try:
            with open(f"{self.root}/{path}", "rb") as file:  # noqa: PTH123 (joining Paths costs as much)
                return file.read()
        except PermissionError:
            raise BadImage("no permission to read") from None


def _refusal(entry: os.DirEntry[str], path: str, inside: str) -> str | None:
    if _printable(path) != path:
        return "name is not UTF-8"
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if not target.startswith(inside + os.sep):
            return "link out of the folder"
        if entry.is_dir():
            return "link to a folder"
    return None if entry.is_file() else "not a regular file"


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


class RemoteTree:
    """A prefix of an object store, through fsspec; keys and endpoints come from its usual environment."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")

    @cached_property
    def _place(self) -> tuple[Any, str]:
        return fsspec.core.url_to_fs(self.address)

    def files(self) -> Files:
        store, root = self._place
        found = self._ask(store.find, root, detail=True)
        entries = {}
        for name, about in found.items():
            path = name[len(root) :].lstrip("/")
            if about["type"] == "file" and path:
                etag = about.get("ETag")
                entries[path] = FileEntry(path, about["size"], etag.strip('"') if etag else None)
        if not entries:
            raise UserError(f"{self.address}: nothing there; is the prefix right?")
        return Files(entries, {})

    def read(self, path: str) -> bytes:
        store, root = self._place
        return store.cat_file(f"{root}/{path}")

    def sub_folders(self) -> list[str]:
        """Addresses of the prefixes directly below this one, sorted."""
        store, root = self._place
        found = self._ask(store.ls, root, detail=True)
        scheme = self.address.partition("://")[0]
        return sorted(f"{scheme}://{about['name']}" for about in found if about["type"] == "directory")

    def _ask(self, listing: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        store, _ = self._place
        store.invalidate_cache()  # others write here: an old listing would hide their files
        try:
            return listing(*arguments, **options)
        except Exception as error:  # the stores' clients share no base class of errors
            raise UserError(f"{self.address}: cannot be listed: {error or type(error).__name__}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address}  # an open connection does not travel to another process
