"""The files below a local folder or a prefix of an object store, as all layouts of files read them; nothing
outside is read.

Files that operating systems and file servers add never reach a layout. A link to a folder is an error,
because otherwise the images behind it would be missing silently.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol

from csdn.data.catalog import ImageRecord
from csdn.data.images import EXTENSIONS, BadImage, extension_of
from csdn.data.storage import PROTOCOLS, Store, StoredObject
from csdn.runtime.errors import UserError
from csdn.runtime.sanitize import has_credentials, redact

# Names, in lower case, that systems and file servers write. Every name that begins with a dot counts too.
_SYSTEM = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),  # Windows
    *("__macosx", "icon\r"),  # macOS
    *("@eadir", "#recycle", "#snapshot", "@recycle", "lost+found"),  # file servers
}


def is_system_file(path: str) -> bool:
    """Whether a file is hidden, a system file, or in such a folder; every layout ignores it.

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
    """All files below a root by path, refused files (path -> reason), and the ignored system files."""

    entries: dict[str, FileEntry]
    refused: dict[str, str]
    ignored: list[str] = field(default_factory=list)

    def real_path(self, written: str) -> str:
        """The path of the file that a list or manifest means by `written`.

        If no file has exactly that path, it is the file whose path differs in separators (`\\`), letter case
        or Unicode composition only. If there is none, or more than one: `written`, with `/`.
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
    def read(self, file: FileEntry | ImageRecord) -> bytes: ...


def open_tree(address: str) -> Tree:
    """The tree at a local folder or a prefix of an object store; raises UserError for any other address."""
    _refuse_credentials(address)
    scheme, separator, _ = address.partition("://")
    if not separator:
        return LocalTree(Path(address))
    if scheme in PROTOCOLS:
        return RemoteTree(address)
    raise UserError(
        f"{address}: {scheme}:// is not supported; give a local folder or an s3:// prefix (or gs://, az://)"
    )


def _refuse_credentials(address: str) -> None:
    if has_credentials(address):
        raise UserError(
            f"{redact(address)}: the address has a key or password in it, which the ledger "
            "would put into Git. Keys belong in the environment, or in ~/.aws/credentials"
        )


class LocalTree:
    """A local folder. A link to a folder is an error; a link to a file is followed if the target is
    inside.
    """

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
        """Raise UserError for a link to a folder or to nothing, which may stand for a whole camera."""
        if not entry.is_symlink() or entry.is_file() or (extension_of(path) and not entry.is_dir()):
            return
        target = _printable(str(Path(entry.path).readlink()))
        what = f"a link to the folder {target}" if entry.is_dir() else f"a link to {target}, where nothing is"
        raise UserError(
            f"{self.root}/{_printable(path)}: {what}. Such links are not followed: put the folder itself "
            "there (move it, or use `mount --bind`), or remove the link if no images belong there"
        )

    def read(self, file: FileEntry | ImageRecord) -> bytes:
        try:
            with open(f"{self.root}/{file.path}", "rb") as opened:  # noqa: PTH123 (joining Paths costs as much)
                return opened.read()
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
        self.store = Store(address)

    def files(self) -> Files:
        objects = list(self.store.objects())
        if not objects:
            raise UserError(f"{self.store.address}: nothing there; is the prefix right?")
        ignored = [found.name for found in objects if is_system_file(found.name)]
        entries = (FileEntry(found.name, found.size, found.etag) for found in objects)
        return Files({entry.path: entry for entry in entries if not is_system_file(entry.path)}, {}, ignored)

    def read(self, file: FileEntry | ImageRecord) -> bytes:
        """The bytes that were listed (csdn.data.storage.Store.read)."""
        try:
            return self.store.read(StoredObject(file.path, file.size, file.etag))
        except FileNotFoundError as error:
            raise UserError(f"{error}: it was listed, but does not exist any more") from None

    def sub_folders(self) -> list[str]:
        """Addresses of the prefixes directly below this one, sorted."""
        return self.store.folders()


# What the name of a file says: an image, an image or film of an unsupported kind, or no image.


# Images and films that cameras write, of kinds that csdn.data.images does not decode.
_OTHER_IMAGES = {
    extension
    for kind in (
        "apng avif dib gif heic heif hif jfif jpe svg tga tif tiff webp",
        "j2c j2k jp2 jpx jxl jxr mpo pbm pcx pgm pnm ppm psd xbm xpm",
        "arw cr2 cr3 dng nef orf raf raw rw2 y16 yuv",  # raw data of the sensor
        "dcm exr fff hdr npy npz pfm seq",  # of thermal cameras, among others
        "avi h264 h265 m4v mj2 mjpeg mjpg mkv mov mp4 mpeg mpg webm wmv",
    )
    for extension in kind.split()
}


class Kind(Enum):
    IMAGE = auto()
    OTHER_IMAGE = auto()  # of an unsupported kind; the user is told of it
    NO_IMAGE = auto()


def kind_of(path: str) -> Kind:
    """
    >>> kind_of("a.JPG"), kind_of("a.heic"), kind_of("notes.txt")
    (<Kind.IMAGE: 1>, <Kind.OTHER_IMAGE: 2>, <Kind.NO_IMAGE: 3>)
    """
    if extension_of(path):
        return Kind.IMAGE
    return Kind.OTHER_IMAGE if _ending(path) in _OTHER_IMAGES else Kind.NO_IMAGE


def not_taken(path: str) -> str:
    """The reason for refusing a file of another kind.

    >>> not_taken("visible/gate/Ana/0.HEIC")
    '.heic files are not taken'
    """
    ending = _ending(path)
    return f".{ending} files are not taken" if ending else "files without an extension are not taken"


def taken_kinds() -> str:
    """The supported extensions, such as ".jpg, .png or .bmp"."""
    *first, last = (f".{extension}" for extension in EXTENSIONS)
    return f"{', '.join(first)} or {last}"


def kinds_in_words(paths: Iterable[str]) -> list[tuple[str, str]]:
    """(path, its extension) of files, for csdn.runtime.sanitize to count."""
    return [(path, f".{_ending(path)}" if _ending(path) else "no extension") for path in paths]


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix[1:].lower()
