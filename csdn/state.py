"""State of an unfinished stage: its position and tensors, so that a killed run continues exactly.

    .state/clone                        what names this clone where several share a place
    .state/<key>/lock                   held for as long as the stage runs; its text is the stage's name
    .state/<key>/<part>/<n>.safetensors the tensors of a part of the stage
    .state/<key>/<part>/state.json      position, and the name and hash of the tensors: it is replaced last

The key names everything that decides the result, so state of other data or parameters is never picked up.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from csdn.documents import parse_json
from csdn.errors import UserError
from csdn.files import replace_file

if TYPE_CHECKING:
    import torch

    from csdn.params import Params

# Raised by one whenever the same inputs and parameters would give another result than before.
METHOD_VERSION = 1
# Another version of these may give other last digits: what one began, another must not end.
LIBRARIES = ("numpy", "pillow", "simplejpeg", "torch")
# Unfinished runs of a stage that are kept beside the present one, for a return to their parameters.
KEPT = 3
_NOT_WHOLE = (FileNotFoundError, UserError, KeyError, TypeError)
# What this process has opened: the state that its next run would continue.
_opened: list[Path] = []


def state_key(**parts: Any) -> str:
    """SHA-256 (64 hex digits) of everything that decides a stage's result; `parts` are JSON values."""
    libraries = {name: version(name) for name in LIBRARIES}
    text = json.dumps({"method": METHOD_VERSION, "libraries": libraries, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def stage_key(section: str, params: Params, clip: str, inputs: Iterable[Path], **more: Any) -> str:
    """Key of a stage that computes: its parameters, the hash of CLIP's weights, the bytes of `inputs`.

    samples.parquet among these stands for the images, whose hashes it names. `scaling` is no part of it.
    more: JSON values that decide the result, too.
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


class StageState:
    """The saved state of one stage run; open it with `open_state`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def part(self, name: str) -> StageState:
        """State of one phase, kept beside that of the others."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return StageState(folder)

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """Replace the saved state; a kill at any moment leaves the old one or the new one, whole.

        position: JSON values. Only tensors make this import torch.
        """
        files = as_files(position, tensors)
        for name, data in files.items():  # in this order: what names the tensors is replaced last
            _write(self.folder / name, data)
        for other in self.folder.glob("*.safetensors"):
            if other.name not in files:
                other.unlink()

    def load(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """The last saved (position, tensors), or None where nothing whole was saved."""
        return saved_files(lambda name: (self.folder / name).read_bytes())

    def leaving(self) -> bool:
        """Never: a process that is to end is told by a signal, and goes on from its last save."""
        return False


def as_files(
    position: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None
) -> dict[str, bytes]:
    """A saved state as the files of a folder: its tensors, then `state.json`, with their name and hash."""
    data = _to_bytes(tensors) if tensors else b""
    digest = hashlib.sha256(data).hexdigest()
    name = f"{digest[:16]}.safetensors" if data else None
    entry = json.dumps({"tensors": name, "sha256": digest, "position": position}, allow_nan=False).encode()
    return ({name: data} if name else {}) | {"state.json": entry}


def saved_files(read: Callable[[str], bytes]) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """(position, tensors) out of files that `read` gives by name; None where they are not whole."""
    try:
        entry = parse_json(read("state.json"), "state.json")
        position, name, digest = entry["position"], entry["tensors"], entry["sha256"]
        data = read(Path(name).name) if name else b""
    except _NOT_WHOLE:
        return None
    if hashlib.sha256(data).hexdigest() != digest:
        return None
    tensors = _from_bytes(data) if data else {}
    return None if tensors is None else (position, tensors)


def saved_position(read: Callable[[str], bytes]) -> dict[str, Any] | None:
    """The position alone, without a look at the tensors; None where there is none."""
    try:
        return parse_json(read("state.json"), "state.json")["position"]
    except _NOT_WHOLE:
        return None


@contextmanager
def open_state(stage: str, key: str, root: str | Path = ".state") -> Iterator[StageState]:
    """The state under `key`, locked against a second run; removed when the block ends without an error.

    Of the stage's other unfinished runs the last KEPT stay, and those that are at work. Raises UserError
    where another process has this state.
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
        lock.write(stage)  # this is also the time at which the run was last at work
        lock.flush()
        _forget_older(stage, folder)
        _opened.append(folder)
        yield StageState(folder)
        _remove(folder)


def clone_name(root: Path) -> str:
    """The name of the clone whose state is below `root`, for places that clones share (16 hex digits).

    CSDN_CLONE in the environment decides it, where a clone shall go on with what an earlier one has left.
    Else it is drawn once, and holds for this path: a copy of the folder has another name.
    """
    named = os.environ.get("CSDN_CLONE")
    text = named or f"{_drawn(root / 'clone')} {root.resolve()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _drawn(path: Path) -> str:
    """What the file holds: a random text, written by the first process that asks."""
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        if not text:
            text = secrets.token_hex(16)
            file.write(text)
    return text


def seconds_since_save() -> float | None:
    """How old the last save is in the state that this process opened; None where there is none."""
    saves = [file.stat().st_mtime for folder in _opened for file in folder.rglob("state.json")]
    return max(0.0, time.time() - max(saves)) if saves else None


def _lock(folder: Path) -> IO[str] | None:
    """The locked file of a state's folder, which is made if need be; None where another process has it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # its owner ended, and removed the folder, just now
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
    """Whether the open file is the one that has this path now."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _remove(folder: Path) -> None:
    """Remove a state whose lock is held: at once for others, who then find no half of it."""
    gone = folder.with_name(f"{folder.name}.removed")
    folder.replace(gone)
    shutil.rmtree(gone, ignore_errors=True)  # what stays goes with the next run's


def _forget_older(stage: str, folder: Path) -> None:
    """Remove what was left of the stage's unfinished runs but the last KEPT: they must not fill the disk."""
    for gone in folder.parent.glob("*.removed"):  # a kill came before their end
        shutil.rmtree(gone, ignore_errors=True)
    others = {}
    for lock in folder.parent.glob("*/lock"):
        with suppress(FileNotFoundError):  # that run ended just now
            if lock.parent != folder and lock.read_text() == stage:
                others[lock.parent] = lock.stat().st_mtime
    for other in sorted(others, key=others.get, reverse=True)[KEPT:]:
        held = _lock(other)
        if held:
            with held:
                _remove(other)


def _to_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})


def _from_bytes(data: bytes) -> dict[str, torch.Tensor] | None:
    """The tensors; None where the bytes are of another format, whatever hash stands beside them."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(sorted(load(data).items()))  # `load` gives them in no order of its own
    except SafetensorError:
        return None


def _write(path: Path, data: bytes) -> None:
    with replace_file(path) as temporary:
        temporary.write_bytes(data)
