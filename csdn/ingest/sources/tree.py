"""The files under a folder or an s3:// prefix, never leaving it: layouts of files read through this.

What operating systems and file servers put beside people's files never reaches a layout. A link to a folder
is an error: what lies behind it would be missing without a word.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from csdn.data.images import BadImage, extension_of
from csdn.runtime.errors import UserError
from csdn.runtime.sanitize import has_credentials, redact

# Names, in small letters, of what systems and file servers write; so is all that begins with a dot.
_SYSTEM = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),  # Windows
    *("__macosx", "icon\r"),  # macOS
    *("@eadir", "#recycle", "#snapshot", "@recycle", "lost+found"),  # file servers
}


def is_system_file(path: str) -> bool:
    """Whether a file is hidden, a system's own, or in such a folder: it is ignored in every layout.

    >>> is_system_file("cam1/0001/._0001.jpg"), is_system_file("@eaDir/a.jpg"), is_system_file("a/b.jpg")
    (True, True, False)
    """
    return any(part.startswith(".") or part.lower() in _SYSTEM for part in path.split("/"))


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A regular file: `path` below the root with `/`, `size` in bytes, `etag` where the store gives one."""

    path: str
    size: int
    etag: str | None = None


@dataclass(frozen=True)
class Files:
    """All files below a root, by path; what was refused: path -> reason; and ignored files of systems."""

    entries: dict[str, FileEntry]
    refused: dict[str, str]
    ignored: list[str] = field(default_factory=list)

    def real_path(self, written: str) -> str:
        """The path of the file that a list or manifest means by `written`.

        Where no file is called exactly so, the one that is but for separators (`\\`), letter case or the
        composition of Unicode letters. Where there is none, or more than one: `written`, with `/`.
        """
        if written in self.entries or written in self.refused:
            return written
        found = self._by_form.get(_form(written), [])
        return found[0] if len(found) == 1 else written.replace("\\", "/")

    @cached_property
    def _by_form(self) -> dict[str, list[str]]:
        forms = defaultdict(list)
        for path in (*self.entries, *self.refused):
            forms[_form(path)].append(path)
        return forms


def _form(path: str) -> str:
    return unicodedata.normalize("NFC", path.replace("\\", "/")).casefold()


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
            f"{redact(address)}: the address has a key or password in it, which the ledger "
            "would put into Git. Keys belong in the environment, or in ~/.aws/credentials"
        )


class LocalTree:
    """A local folder. A link to a folder is an error; one to a file is followed where it stays inside."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def files(self) -> Files:
        if not self.root.is_dir():
            where = "" if self.root.is_absolute() else f" in {Path.cwd()}"
            raise UserError(f"{self.root}: no such folder{where}; is the path right, and the disk mounted?")
        files = Files({}, {})
        inside = os.path.realpath(self.root)
        try:
            for entry, path in self._walk(files.ignored):
                self._check_link(entry, path)
                reason = _refusal(entry, path, inside)
                if reason:
                    files.refused[_printable(path)] = reason
                else:
                    files.entries[path] = FileEntry(path, entry.stat().st_size)
        except OSError as error:
            raise UserError(f"{self.root}: cannot be listed: {error}") from error
        return files

    def _walk(self, ignored: list[str]) -> Iterator[tuple[os.DirEntry[str], str]]:
        folders = [(str(self.root), "")]
        while folders:
            folder, prefix = folders.pop()
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_system_file(entry.name):
                        ignored.append(_printable(prefix + entry.name))
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append((entry.path, f"{prefix}{entry.name}/"))
                    else:
                        yield entry, prefix + entry.name

    def _check_link(self, entry: os.DirEntry[str], path: str) -> None:
        """Raise UserError for a link to a folder, or to nothing: behind it may be a whole camera."""
        if not entry.is_symlink() or entry.is_file() or (extension_of(path) and not entry.is_dir()):
            return
        target = _printable(str(Path(entry.path).readlink()))
        what = f"a link to the folder {target}" if entry.is_dir() else f"a link to {target}, where nothing is"
        raise UserError(
            f"{self.root}/{_printable(path)}: {what}. Such links are not followed: put the folder itself "
            "there (move it, or use `mount --bind`), or remove the link if no images belong there"
        )

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
    return None if entry.is_file() else "not a regular file"


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


class RemoteTree:
    """A prefix of an object store."""

    def __init__(self, address: str) -> None:
        # Imported here: processes that read folders start faster without a client.
        from csdn.data.storage import Store

        self.store = Store(address)

    def files(self) -> Files:
        found = list(self.store.objects())
        if not found:
            raise UserError(f"{self.store.address}: nothing there; is the prefix right?")
        ignored = [one.name for one in found if is_system_file(one.name)]
        taken = (one for one in found if not is_system_file(one.name))
        return Files({one.name: FileEntry(one.name, one.size, one.etag) for one in taken}, {}, ignored)

    def read(self, path: str) -> bytes:
        try:
            return self.store.read(path)
        except FileNotFoundError as error:
            raise UserError(f"{error}: it was listed, and is not there any more") from None

    def sub_folders(self) -> list[str]:
        """Addresses of the prefixes directly below this one, sorted."""
        return self.store.folders()
