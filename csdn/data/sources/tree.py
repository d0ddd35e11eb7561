"""The files under a folder or an s3:// prefix, never leaving it: layouts of files read through this."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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
    """A prefix of an object store."""

    def __init__(self, address: str) -> None:
        # Imported here: processes that read folders start faster without a client.
        from csdn.data.store import Store

        self.store = Store(address)

    def files(self) -> Files:
        found = {one.name: FileEntry(one.name, one.size, one.etag) for one in self.store.objects()}
        if not found:
            raise UserError(f"{self.store.address}: nothing there; is the prefix right?")
        return Files(found, {})

    def read(self, path: str) -> bytes:
        try:
            return self.store.read(path)
        except FileNotFoundError as error:
            raise UserError(f"{error}: it was listed, and is not there any more") from None

    def sub_folders(self) -> list[str]:
        """Addresses of the prefixes directly below this one, sorted."""
        return self.store.folders()
