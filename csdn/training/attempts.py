"""Where stage 2 goes on: at the furthest of what any run of it has saved, here or on a cluster.

Each run on Ray keeps the checkpoints of its workers in a folder of its own, an attempt, in `scaling.storage`
or below the state; whatever an orphan still writes stands in its own attempt. A checkpoint has the files of a
saved state (csdn.state).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyarrow import fs
from torch import Tensor

from csdn.data.store import arrow_filesystem
from csdn.state import StageState, saved_files

Saved = tuple[dict[str, Any], dict[str, Tensor]]


class Resumed:
    """A stage's state that begins where the furthest attempt is, and saves as before."""

    def __init__(self, state: StageState, storage: str | None) -> None:
        self.state, self.storage = state, storage

    def load(self) -> Saved | None:
        return furthest(self.state, *attempts_of(self.state, self.storage))

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        self.state.save(position, tensors)

    def leaving(self) -> bool:
        return self.state.leaving()


def attempts_of(state: StageState, storage: str | None) -> tuple[fs.FileSystem, str]:
    """(file system, folder in it) of the attempts of a state; UserError where the storage is not there."""
    if storage is None:
        return fs.LocalFileSystem(), str((state.folder / "attempts").absolute())
    if "://" in storage:
        filesystem, path = arrow_filesystem(storage)
    else:
        filesystem, path = fs.LocalFileSystem(), str(Path(storage).absolute())
    return filesystem, f"{path}/{state.folder.name[:16]}"


def furthest(state: StageState, filesystem: fs.FileSystem, folder: str) -> Saved | None:
    """The saved (position, tensors) furthest into the training, or None; what is not whole does not count."""
    files = filesystem.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    found = [state.load()]
    for file in files:
        if file.base_name == "state.json":
            found.append(_read(filesystem, file.path.rpartition("/")[0]))
    return max(filter(None, found), key=lambda saved: (saved[0]["epoch"], saved[0]["step"]), default=None)


def remove_attempts(filesystem: fs.FileSystem, folder: str) -> None:
    """Remove the attempts of a state that has ended."""
    if filesystem.get_file_info(folder).type == fs.FileType.Directory:
        filesystem.delete_dir(folder)


def _read(filesystem: fs.FileSystem, folder: str) -> Saved | None:
    def read(name: str) -> bytes:
        with filesystem.open_input_stream(f"{folder}/{name}") as file:
            return file.read()

    return saved_files(read)
