"""State of an unfinished stage: its position and tensors, so that a killed run continues exactly.

    .state/clone                        random text that names this clone in storage that several clones share
    .state/<key>/lock                   locked while the stage runs; holds the stage's name
    .state/<key>/<part>/<n>.safetensors tensors of a part of the stage
    .state/<key>/<part>/state.json      position, name and hash of the tensors; replaced last

The key is a hash of everything that decides the result, so a run never continues from the state of other data
or parameters. In this order: the key, `open_state` and its lock, `StageState` and its files, when to save
(`CheckpointTimer`), and the name of a clone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from csdn.runtime.documents import parse_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_write

if TYPE_CHECKING:
    import torch

    from csdn.params import Params


# To be raised by one whenever the same inputs and parameters give another result than before.
METHOD_VERSION = 1
# Other versions of these may change the last digits, so a run never continues with another version.
LIBRARIES = ("numpy", "pillow", "simplejpeg", "torch")
# Unfinished runs of a stage that are kept beside the current one, in case their parameters are used again.
KEPT = 3
_INCOMPLETE = (FileNotFoundError, UserError, KeyError, TypeError)  # of files that a saved state lacks
_opened: list[Path] = []  # the folders of state that this process has opened


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
    if section == "embedding":
        more["precision"] = params.training.precision
    return state_key(
        section=section,
        **more,
        seed=params.seed,
        model=params.model.model_dump(exclude={"weights", "pretrained"}),
        settings=getattr(params, section).model_dump(),
        clip=clip,
        inputs=[_file_hash(path) for path in inputs],
    )


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def open_state(stage: str, key: str, root: str | Path = ".state") -> Iterator[StageState]:
    """The state under `key`, locked against a second run; removed when the block ends without an error.

    Also removes the states of the stage's other unfinished runs, except the latest KEPT and those in use.
    Raises UserError where another process uses this state.
    """
    folder = Path(root) / key
    lock = _lock(folder)
    if lock is None:
        raise UserError(
            f"{folder}: another process is running this stage on the same data and parameters; "
            "wait for it to end, or stop it, then run the command again"
        )
    with lock:
        lock.truncate(0)
        lock.write(stage)  # also sets the modification time, by which the latest runs are found
        lock.flush()
        _remove_older(stage, folder)
        _opened.append(folder)
        yield StageState(folder)
        _remove(folder)


def _lock(folder: Path) -> IO[str] | None:
    """Lock a state's folder, created if missing; returns the lock file, or None if it is locked."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process has just removed the folder
            lock = (folder / "lock").open("a")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                return None
            if _is_at(lock, folder / "lock"):
                return lock
            lock.close()


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether this path still leads to the open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _remove(folder: Path) -> None:
    """Remove a state whose lock is held; renamed first, so that no process finds half of it."""
    removed = folder.with_name(f"{folder.name}.removed")
    folder.replace(removed)
    shutil.rmtree(removed, ignore_errors=True)  # `_remove_older` removes what is left of it


def _remove_older(stage: str, folder: Path) -> None:
    """Remove the states of the stage's unfinished runs except the latest KEPT, which bounds disk usage."""
    for removed in folder.parent.glob("*.removed"):  # by a process that was killed before the end
        shutil.rmtree(removed, ignore_errors=True)
    others = {}
    for lock in folder.parent.glob("*/lock"):
        with suppress(FileNotFoundError):  # that run has just ended
            if lock.parent != folder and lock.read_text() == stage:
                others[lock.parent] = lock.stat().st_mtime
    for other in sorted(others, key=others.get, reverse=True)[KEPT:]:
        held = _lock(other)
        if held:
            with held:
                _remove(other)


class StageState:
    """The saved state of one stage run; open it with `open_state`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def part(self, name: str) -> StageState:
        """The state of one phase, independent of the other phases' states."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return StageState(folder)

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """Replace the saved state; a kill at any moment leaves either the old state or the new one, complete.

        position: JSON values. Imports torch only where there are tensors.
        """
        files = as_files(position, tensors)
        for name, data in files.items():  # the tensors first, then state.json, which refers to them
            with atomic_write(self.folder / name) as temporary:
                temporary.write_bytes(data)
        for other in self.folder.glob("*.safetensors"):
            if other.name not in files:
                other.unlink()

    def load(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """The last saved (position, tensors), or None where there is no complete one."""
        return saved_files(lambda name: (self.folder / name).read_bytes())

    def leaving(self) -> bool:
        """Whether this machine is about to be taken away; only Ray announces that (csdn.cluster)."""
        return False


def as_files(
    position: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None
) -> dict[str, bytes]:
    """A saved state as files of a folder: the tensors, then `state.json` with their name and hash."""
    data = _to_bytes(tensors) if tensors else b""
    digest = hashlib.sha256(data).hexdigest()
    name = f"{digest[:16]}.safetensors" if data else None
    entry = json.dumps({"tensors": name, "sha256": digest, "position": position}, allow_nan=False).encode()
    return ({name: data} if name else {}) | {"state.json": entry}


def saved_files(read: Callable[[str], bytes]) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """(position, tensors) from files that `read` returns by name; None where incomplete or damaged."""
    try:
        entry = parse_json(read("state.json"), "state.json")
        position, name, digest = entry["position"], entry["tensors"], entry["sha256"]
        data = read(Path(name).name) if name else b""
    except _INCOMPLETE:
        return None
    if hashlib.sha256(data).hexdigest() != digest:
        return None
    tensors = _from_bytes(data) if data else {}
    return None if tensors is None else (position, tensors)


def saved_position(read: Callable[[str], bytes]) -> dict[str, Any] | None:
    """The position only, without reading the tensors; None where there is none."""
    try:
        return parse_json(read("state.json"), "state.json")["position"]
    except _INCOMPLETE:
        return None


def _to_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})


def _from_bytes(data: bytes) -> dict[str, torch.Tensor] | None:
    """The tensors; None where the bytes are not safetensors, even if their hash is right."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(sorted(load(data).items()))  # safetensors returns them in random order
    except SafetensorError:
        return None


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


def seconds_since_save() -> float | None:
    """The age of the last save in the states that this process opened; None where there is none."""
    saves = [file.stat().st_mtime for folder in _opened for file in folder.rglob("state.json")]
    return max(0.0, time.time() - max(saves)) if saves else None


def clone_name(root: Path) -> str:
    """A name for the clone whose state is below `root`, for storage that clones share (16 hex digits).

    It depends on a random text in the clone and on its path, so that a copy of the folder has another name.
    With the environment variable CSDN_CLONE a clone continues the work of an earlier one with the same value.
    """
    text = os.environ.get("CSDN_CLONE") or f"{_random_text(root / 'clone')} {root.resolve()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _random_text(path: Path) -> str:
    """The text of the file; the first process writes it, under a lock."""
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        if not text:
            text = secrets.token_hex(16)
            file.write(text)
    return text
