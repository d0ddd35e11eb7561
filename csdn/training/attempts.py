"""Where stage 2 goes on: at the furthest of what any run of it has saved, here or on a cluster.

Each run on Ray keeps the checkpoints of its workers in a folder of its own, an attempt: below the state, or
in `scaling.storage` below the clone's name and the state's key. So the state's lock keeps others from both,
and clones that share a storage never read or remove each other's. Whatever an orphan still writes stands in
its own attempt. A checkpoint has the files of a saved state (csdn.state).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pyarrow import fs
from torch import Tensor

from csdn.data.store import arrow_filesystem
from csdn.state import StageState, clone_name, saved_files, saved_position

Saved = tuple[dict[str, Any], dict[str, Tensor]]


class Attempts:
    """A stage's state, and the attempts that stand beside it in `folder` of `filesystem`.

    It saves as the state does. Raises UserError where the storage does not answer, or refuses.
    """

    def __init__(self, state: StageState, storage: str | None) -> None:
        self.state = state
        self.filesystem, root = _place(storage or str(state.folder / "attempts"))
        if storage:
            root = f"{root}/{clone_name(state.folder.parent)}/{state.folder.name[:16]}"
        self.folder = root
        self._furthest = ""  # the folder that was loaded

    def load(self) -> Saved | None:
        """The saved (position, tensors) furthest into the training; what is not whole does not count."""
        readers = {folder: partial(self._read, folder) for folder in self._checkpoints()}
        readers[""] = lambda name: (self.state.folder / name).read_bytes()
        positions = {folder: saved_position(read) for folder, read in readers.items()}
        found = [folder for folder, position in positions.items() if position]
        for folder in sorted(found, key=lambda one: _steps(positions[one]), reverse=True):
            if saved := saved_files(readers[folder]):
                self._furthest = folder
                return saved
        return None

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        self.state.save(position, tensors)

    def leaving(self) -> bool:
        return self.state.leaving()

    def forget_others(self) -> None:
        """Remove every attempt but the one that was loaded: they must not fill the storage."""
        for entry in self.filesystem.get_file_info(fs.FileSelector(self.folder, allow_not_found=True)):
            if not self._furthest.startswith(f"{entry.path}/"):
                self.filesystem.delete_dir(entry.path)

    def remove(self) -> None:
        """Remove all attempts, once what they were for is written."""
        if self.filesystem.get_file_info(self.folder).type == fs.FileType.Directory:
            self.filesystem.delete_dir(self.folder)

    def _checkpoints(self) -> Iterator[str]:
        selector = fs.FileSelector(self.folder, recursive=True, allow_not_found=True)
        for file in self.filesystem.get_file_info(selector):
            if file.base_name == "state.json":
                yield file.path.rpartition("/")[0]

    def _read(self, folder: str, name: str) -> bytes:
        with self.filesystem.open_input_stream(f"{folder}/{name}") as file:
            return file.read()


def _place(storage: str) -> tuple[fs.FileSystem, str]:
    if "://" in storage:
        return arrow_filesystem(storage)
    return fs.LocalFileSystem(), str(Path(storage).absolute())


def _steps(position: Mapping[str, Any]) -> tuple[int, int]:
    return position["epoch"], position["step"]
