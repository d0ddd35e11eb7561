"""Files of tensors, read so that nothing in them is ever run, and checked before anything is made of them."""

from __future__ import annotations

import shlex
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from csdn.runtime.errors import UserError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COUNTER = "num_batches_tracked"  # of a batch norm: the one integer among weights
# How files begin that were saved in place of a checkpoint, and what to do.
_MISTAKEN = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; `git lfs pull` brings that",
    b"<": "a web page (HTML or XML), not the file itself; download it again, from the link of the raw file",
    b"\x1f\x8b": "compressed with gzip; unpack it first (gunzip), and give what is inside",
    b"\xfd7zXZ": "compressed with xz; unpack it first (unxz), and give what is inside",
    b"BZh": "compressed with bzip2; unpack it first (bunzip2), and give what is inside",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard; unpack it first (unzstd), and give what is inside",
    b"{": "a JSON text, a server's error or the index of a file in parts; give the weights themselves",
    b"\x89HDF": "an HDF5 file, as Keras writes them; weights of PyTorch are needed",
}


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU; raises UserError for a missing file and for any other format."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        what = f"it is {kind}" if (kind := mistaken_for_weights(path)) else error
        raise UserError(f"{path}: not readable as safetensors: {what}") from None


def read_state_dict(path: str | Path) -> Mapping[str, Any]:
    """A state dict from safetensors or from a file of `torch.save`; its values may be other plain things.

    What the file is, its content says, not its name. A pickle that holds more than tensors and plain values,
    and a TorchScript archive, is refused before any of it runs. Raises UserError.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors" or _is_safetensors(path):
        return read_safetensors(path)
    if kind := mistaken_for_weights(path):
        raise UserError(f"{path}: refused; it is {kind}. Nothing in it was run")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many kinds; torch's words for a pickle advise to run it
        other = type(error).__name__ == "UnpicklingError"
        reason = "it holds more" if other else "it is damaged, cut short, or of another format"
        raise UserError(
            f"{path}: refused, as it is not a state dict of plain tensors: {reason}; nothing in it was run "
            f"({type(error).__name__})"
        ) from None
    if not isinstance(values, Mapping):
        raise UserError(f"{path}: holds a {type(values).__name__}, not a state dict")
    return values


def tensors_in(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Of a state dict the values by name, without what training scripts put around them.

    That is {"state_dict": ...}, and "module." before each name. Raises UserError where no name is a text, or
    two are the same then.
    """
    inner = values.get("state_dict", values)
    if not isinstance(inner, Mapping) or not all(isinstance(name, str) for name in inner):
        raise UserError(f"{source}: not a state dict; its names are no texts")
    found = {name.removeprefix("module."): value for name, value in inner.items()}
    if len(found) < len(inner):
        raise UserError(f"{source}: holds tensors twice, with and without module. before their names")
    return found


def check_weights(source: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError naming the tensors that cannot be weights: only finite real floating point can.

    Those without a value, and those that claim more values than the file has, are refused as well, so that
    no size in a file makes us allocate more than the file has. Counters of batch norms are integers.
    """
    problems = (f"{name}: {problem}" for name, tensor in tensors.items() if (problem := _flaw(name, tensor)))
    refuse(
        source, list(problems), "these tensors cannot be weights; was another file meant, or is it damaged?"
    )


def _flaw(name: str, tensor: Tensor) -> str | None:
    if (
        tensor.is_nested
        or tensor.is_quantized
        or (tensor.layout, tensor.device.type) != (torch.strided, "cpu")
    ):
        return f"{tensor.layout}, {tensor.dtype} on {tensor.device.type}; a plain tensor is needed"
    if not tensor.numel():
        return f"{list(tensor.shape)} has no value"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"{list(tensor.shape)} claims more values than the file has"
    if name.endswith(_COUNTER):
        return None if tensor.dtype == torch.int64 and tensor.ndim == 0 else "a counter is one int64"
    if tensor.dtype not in _FLOATS:
        return f"{tensor.dtype}; real floating point is needed"
    return None if tensor.float().isfinite().all() else "has values that are NaN or infinite"


def mistaken_for_weights(path: str | Path) -> str | None:
    """What a file is, where it is a common one that holds no weights we could read; None for any other."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
        if not head:
            return "empty; download or copy it again"
        if head.startswith(b"PK"):
            return _archive(path)
    except OSError:  # who reads the file next says it
        return None
    begins = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((what for start, what in _MISTAKEN.items() if begins.startswith(start)), None)


def _archive(path: Path) -> str | None:
    """What a zip archive is, if it is not a whole file of torch.save; nothing is unpacked to the disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {name.partition("/")[2] for name in archive.namelist()}
            if "constants.pkl" in entries:
                return _torchscript(path)
            if "data.pkl" not in entries or any(entry.compress_type for entry in archive.infolist()):
                named = ", ".join(sorted(archive.namelist())[:3])
                return f"a zip archive, but not one of torch.save ({named}, ...); unpack it, if it is inside"
            damaged = archive.testzip()  # torch does not look at the checksums
            return f"damaged: the checksum of {damaged} is wrong; copy it again" if damaged else None
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError):
        return "damaged or cut short; download or copy it again"


def _torchscript(path: Path) -> str:
    files = shlex.join([str(path), str(path.with_name(f"{path.stem}-state.pt"))])
    return (
        "a TorchScript archive, which is a program; if you trust it, this command runs it once to take its "
        'tensors out, and then give the second file: python -c "import sys, torch; torch.save('
        f"torch.jit.load(sys.argv[1], map_location='cpu').state_dict(), sys.argv[2])\" {files}"
    )


def _is_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors do: the length of a JSON header, and its brace."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


# Do these tensors fit that network? Said by name and shape, before anything is loaded.


LINES = 8


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def misfits(needed: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]) -> list[str]:
    """One line for each tensor of another shape, missing, or not known; names in the order of `needed`."""
    lines = []
    for name, shape in needed.items():
        if name not in found:
            lines.append(f"{name}: missing, {list(shape)} needed")
        elif list(found[name]) != list(shape):
            lines.append(f"{name}: {list(found[name])} found, {list(shape)} needed")
    lines += [
        f"{name}: {list(found[name])} found, no such tensor is known" for name in found if name not in needed
    ]
    return lines


def refuse(source: str, lines: Sequence[str], advice: str) -> None:
    """Raise UserError with the first of `lines` if there are any."""
    if lines:
        more = [f"  ... and {len(lines) - LINES} more"] if len(lines) > LINES else []
        raise UserError("\n".join([f"{source}: {advice}", *(f"  {line}" for line in lines[:LINES]), *more]))
