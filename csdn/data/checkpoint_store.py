"""Checkpoints of an unfinished stage: its position and tensors, so that a killed run continues exactly.

    .state/clone                            random text that names this clone in storage that clones share
    .state/<key>.lock                       locked while the stage runs
    .state/<key>/stage                      the stage's name
    .state/<key>/<part>/<name>.safetensors  tensors of a part of the stage; each save has a name of its own
    .state/<key>/<part>/state.json          position, name and hash of the tensors; replaced last

The key is a hash of everything that decides the result, so a run never continues from the state of other data
or parameters. In this order: the key, `open_state` and its lock, `CheckpointStore`, and when to save
(`CheckpointTimer`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csdn.runtime.documents import parse_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_write, file_sha256, locked

if TYPE_CHECKING:
    import torch
    from fsspec import AbstractFileSystem

    from csdn.params import Params

Saved = tuple[dict[str, Any], dict[str, "torch.Tensor"]]  # position, tensors
Read = Callable[[str], bytes]  # the bytes of a file of a checkpoint, by name

# To be raised by one whenever the same inputs and parameters give another result than before.
METHOD_VERSION = 1
# Other versions of these may change the last digits, so a run never continues with another version.
LIBRARIES = ("numpy", "pillow", "simplejpeg", "torch")
# Unfinished runs of a stage that are kept beside the current one, in case their parameters are used again.
KEPT = 3
LOCK_SECONDS = 1  # to wait for a lock: another run may be about to end


def state_key(**parts: Any) -> str:
    """SHA-256 (64 hex digits) of everything that decides a stage's result; parts: JSON values."""
    libraries = {name: version(name) for name in LIBRARIES}
    text = json.dumps({"method": METHOD_VERSION, "libraries": libraries, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def stage_key(section: str, params: Params, clip: str, inputs: Iterable[Path], **more: Any) -> str:
    """Key of a stage that computes: its parameters, the hash of CLIP's weights, the bytes of `inputs`.

    samples.parquet among the inputs covers the images, since it holds their hashes. `scaling` is not part of
    the key, since it does not change the result. more: further JSON values that decide the result.
    """
    unused = set() if section == "embedding" else {"compile"}
    return state_key(
        section=section,
        training=params.training.model_dump(exclude=unused),
        **more,
        seed=params.seed,
        model=params.model.model_dump(exclude={"weights", "pretrained"}),
        settings=getattr(params, section).model_dump(),
        clip=clip,
        inputs=[file_sha256(path) for path in inputs],
    )


# The state of a stage, under its key.


@contextmanager
def open_state(
    stage: str, key: str, root: str | Path = ".state", checkpoint_dir: str | None = None
) -> Iterator[CheckpointStore]:
    """The checkpoints under `key`, locked against a second run; removed when the block ends without an error.

    Also removes the states of the stage's other unfinished runs, except the latest KEPT and those in use. An
    error of the block gets a note that says how old the last checkpoint is. checkpoint_dir: as in
    CheckpointStore. Raises UserError where another process uses this state.
    """
    from filelock import FileLock, Timeout  # imported here: worker processes need no lock

    folder, lock_file = Path(root) / key, Path(root) / f"{key}.lock"
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(lock_file, timeout=LOCK_SECONDS).acquire()
    except Timeout:
        raise UserError(
            f"{folder}: another process is running this stage on the same data and parameters; "
            "wait for it to end, or stop it, then run the command again"
        ) from None
    with lock:
        with atomic_write(folder / "stage") as temporary:  # its time tells which runs are the latest
            temporary.write_text(stage)
        _remove_older(stage, folder)
        store = CheckpointStore(folder, checkpoint_dir)
        try:
            yield store
        except BaseException as error:
            if saves := [file.stat().st_mtime for file in folder.rglob("state.json")]:
                age = max(0.0, time.time() - max(saves))  # csdn.runtime.process shows this note
                error.add_note(
                    f"what {stage} saved {age:.0f} s ago is kept: "
                    "run the same command again to continue from there"
                )
            raise
        store.remove()
        lock_file.unlink()  # last, under the lock: filelock acquires no lock of a removed file


def _remove_older(stage: str, folder: Path) -> None:
    """Remove the states of the stage's unfinished runs except the latest KEPT, which bounds disk usage."""
    from filelock import FileLock, Timeout

    others = {}
    for name in folder.parent.glob("*/stage"):
        with suppress(FileNotFoundError):  # that run has just ended
            if name.parent != folder and name.read_text() == stage:
                others[name.parent] = name.stat().st_mtime
    for other in sorted(others, key=others.__getitem__, reverse=True)[KEPT:]:
        lock_file = other.with_name(f"{other.name}.lock")
        with suppress(Timeout), FileLock(lock_file, timeout=0):  # Timeout: it is in use
            _remove_folder(other)
            lock_file.unlink()


def _remove_folder(folder: Path) -> None:
    """Remove a state; `stage` last, by which the next run finds what a killed removal has left."""
    for entry in sorted(folder.glob("*"), key=lambda entry: entry.name == "stage"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    with suppress(OSError):  # it is not there, or a worker that outlives its run still writes to it
        folder.rmdir()


class CheckpointStore:
    """Checkpoints in a folder, each replacing the one before, and those of attempts.

    An attempt is one run on Ray, whose workers keep checkpoints in a folder of their own: in `attempts` below
    the folder, or in `checkpoint_dir` (a folder, or s3://bucket/prefix) below the clone's name and the key.
    With `checkpoint_dir` a run without Ray is an attempt too: `save` copies each checkpoint there, so that
    another machine can continue. The lock of the state covers folder and attempts; clones that share a
    storage never read or remove each other's attempts; and a process that outlives its run writes to its own
    attempt only.
    """

    def __init__(self, folder: Path, checkpoint_dir: str | None = None) -> None:
        self.folder, self.checkpoint_dir = folder, checkpoint_dir
        self._loaded = ""  # the attempt's folder from which `load` read
        self._attempt = self._copied = ""  # folders in the storage: of this process, of its last checkpoint

    def part(self, name: str) -> CheckpointStore:
        """The checkpoints of one phase, independent of those of other phases."""
        return CheckpointStore(self.folder / name)

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """Replace the checkpoint; a kill at any moment leaves either the old one or the new one, complete.

        position: JSON values. Imports torch only where there are tensors.
        """
        name, digest = None, ""
        if tensors:
            name = f"{secrets.token_hex(8)}.safetensors"
            digest = _write_tensors(self.folder / name, tensors)
        header = {"tensors": name, "sha256": digest, "position": position}
        with atomic_write(self.folder / "state.json") as temporary:
            temporary.write_text(json.dumps(header, allow_nan=False))
        for other in (*self.folder.glob("*.safetensors"), *self.folder.glob(".*")):
            if other.name != name:  # the checkpoint before, or what a killed save has left
                other.unlink()
        if self.checkpoint_dir:
            self._copy([name, "state.json"] if name else ["state.json"])

    def _copy(self, names: Sequence[str]) -> None:
        """Copy the files of the checkpoint to the storage, into a folder of their own, the header last."""
        filesystem, folder = self.storage
        if not self._attempt:
            self.remove_other_attempts()
            self._attempt = f"{folder}/{secrets.token_hex(8)}"
        before, self._copied = self._copied, f"{self._attempt}/{secrets.token_hex(8)}"
        self._ask(lambda: filesystem.makedirs(self._copied, exist_ok=True))
        for name in names:
            self._ask(partial(filesystem.put_file, f"{self.folder}/{name}", f"{self._copied}/{name}"))
        if before:
            self._ask(lambda: filesystem.rm(before, recursive=True))

    def load(self) -> Saved | None:
        """(position, tensors) of the furthest complete checkpoint, here or of an attempt; None without one.

        Raises UserError where the storage of the attempts does not respond or denies access.
        """
        readers: dict[str, Read] = {"": lambda name: (self.folder / name).read_bytes(), **self._attempts()}
        headers = {place: header for place, read in readers.items() if (header := _read_header(read))}
        # Stage 2 alone has attempts; its position is that in its plan.
        progress = {
            place: (header["position"].get("epoch", 0), header["position"].get("step", 0))
            for place, header in headers.items()
        }
        for place in sorted(headers, key=progress.__getitem__, reverse=True):
            tensors = _read_tensors(headers[place], readers[place])
            if tensors is not None:
                self._loaded = place
                return headers[place]["position"], tensors
        return None

    def remove(self) -> None:
        """Remove everything, when the result is written."""
        filesystem, folder = self.storage
        if self._ask(lambda: filesystem.isdir(folder)):
            self._ask(lambda: filesystem.rm(folder, recursive=True))
        _remove_folder(self.folder)

    @cached_property
    def storage(self) -> tuple[AbstractFileSystem, str]:
        """The file system and the folder of the attempts."""
        from fsspec.implementations.local import LocalFileSystem  # imported here: few stages need it

        if not self.checkpoint_dir:
            return LocalFileSystem(), str(self.folder.absolute() / "attempts")
        filesystem, root = LocalFileSystem(), str(Path(self.checkpoint_dir).absolute())
        if "://" in self.checkpoint_dir:
            from csdn.data.storage import durable_filesystem

            filesystem, root = durable_filesystem(self.checkpoint_dir)
        return filesystem, f"{root}/{clone_name(self.folder.parent)}/{self.folder.name[:16]}"

    def remove_other_attempts(self) -> None:
        """Remove every attempt except the loaded one, which bounds storage."""
        filesystem, folder = self.storage
        with suppress(FileNotFoundError):
            for attempt in self._ask(lambda: filesystem.ls(folder, detail=False)):
                if not self._loaded.startswith(f"{attempt}/"):
                    self._ask(partial(filesystem.rm, attempt, recursive=True))

    def _attempts(self) -> dict[str, Read]:
        """The checkpoints of all attempts: their folders, and what reads their files."""
        filesystem, folder = self.storage
        files = self._ask(lambda: filesystem.find(folder))
        places = [path.rpartition("/")[0] for path in files if path.endswith("/state.json")]

        def read(place: str, name: str) -> bytes:
            return self._ask(lambda: filesystem.cat_file(f"{place}/{name}"))

        return {place: partial(read, place) for place in places}

    def prepared_storage(self) -> tuple[AbstractFileSystem, str]:
        """`storage`, whose folder is there."""
        filesystem, folder = self.storage
        self._ask(lambda: filesystem.makedirs(folder, exist_ok=True))
        return filesystem, folder

    def _ask(self, request: Callable[[], Any]) -> Any:
        """The answer to a request of `storage`; raises UserError where an object store refuses."""
        if not self.checkpoint_dir or "://" not in self.checkpoint_dir:
            return request()
        from csdn.data.storage import asked

        return asked(request, self.checkpoint_dir, self.storage[0])


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write the tensors; returns the file's SHA-256."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_write(path) as temporary:
        try:
            # Not `save`, which makes bytes: for a large state that stops the other threads for half a second.
            save_file(
                {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, temporary
            )
        except SafetensorError as error:
            error.filename = str(path)  # type: ignore[attr-defined]  # `explain_os_error` shows it
            raise
        return file_sha256(temporary)


def _read_header(read: Read) -> dict[str, Any] | None:
    """The content of a state.json; None where it is missing or damaged."""
    try:
        text = read("state.json")
    except FileNotFoundError:
        return None
    with suppress(UserError):  # of the text alone: where a store does not answer, the run may not begin anew
        match parse_json(text, "state.json"):
            case {"position": dict(), "tensors": str() | None, "sha256": str()} as header:
                return header
    return None


def _read_tensors(header: Mapping[str, Any], read: Read) -> dict[str, torch.Tensor] | None:
    """The tensors of a checkpoint; None where they are missing or damaged."""
    if header["tensors"] is None:
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load

    with suppress(FileNotFoundError, SafetensorError):
        data = read(Path(header["tensors"]).name)
        if hashlib.sha256(data).hexdigest() == header["sha256"]:
            return dict(sorted(load(data).items()))  # safetensors returns them in random order
    return None


def clone_name(root: Path) -> str:
    """A name for the clone whose state is below `root`, for storage that clones share (16 hex digits).

    It depends on a random text in the clone and on its path, so that a copy of the folder has another name.
    With the environment variable CSDN_CLONE a clone continues the work of an earlier one with the same value.
    """
    if not (text := os.environ.get("CSDN_CLONE")):
        file = root / "clone"
        with locked(file):
            if not file.exists():
                with atomic_write(file) as temporary:
                    temporary.write_text(secrets.token_hex(16))
        text = f"{file.read_text()} {root.resolve()}"
    return folder_name(text)


def folder_name(clone: str) -> str:
    """The name in the storage (16 hex digits) of a clone with this value of CSDN_CLONE."""
    return hashlib.sha256(clone.encode()).hexdigest()[:16]


# When to save.


OVERHEAD = 0.005  # the fraction of the time that saves may take


class CheckpointTimer:
    """When to save: the time between two saves is that of the last save divided by `overhead`.

    So the cost is the same for models of any size; a killed run loses the work since its last save. The time
    between saves is never below `min_s` seconds, nor above `max_s`, whatever the saves then cost.
    """

    def __init__(self, overhead: float = OVERHEAD, min_s: float = 1.0, max_s: float = math.inf) -> None:
        self.overhead, self.min_s, self.max_s = overhead, min_s, max_s
        self._next = 0.0

    def due(self) -> bool:
        return time.monotonic() >= self._next

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Encloses each save and measures its duration."""
        began = time.monotonic()
        yield
        ended = time.monotonic()
        self._next = ended + min(self.max_s, max(self.min_s, (ended - began) / self.overhead))
