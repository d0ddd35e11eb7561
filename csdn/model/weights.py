"""Files of tensors: read without running any code in them, and checked before a network is made of them.

1. `read_safetensors` and `read_state_dict` read a file; `check_weights` checks that its tensors can be
weights.
2. `mistaken_for_weights` recognises common files that users take for checkpoints, for a helpful error.
3. `misfits` compares names and shapes with those of a network.
"""

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
_COUNTER = "num_batches_tracked"  # of a batch norm: the only integer among weights
# First bytes of files that were saved in place of a checkpoint -> what they are, and what to do.
_MISTAKEN = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; `git lfs pull` fetches it",
    b"<": "a web page (HTML or XML), not the file itself; download it again, from the link of the raw file",
    b"\x1f\x8b": "compressed with gzip; unpack it first (gunzip), and give what is inside",
    b"\xfd7zXZ": "compressed with xz; unpack it first (unxz), and give what is inside",
    b"BZh": "compressed with bzip2; unpack it first (bunzip2), and give what is inside",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard; unpack it first (unzstd), and give what is inside",
    b"{": "a JSON text, a server's error or the index of a file in parts; give the weights themselves",
    b"\x89HDF": "an HDF5 file, as Keras writes them; weights of PyTorch are needed",
}


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU; raises UserError for a missing file and for another format."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        what = f"it is {kind}" if (kind := mistaken_for_weights(path)) else error
        raise UserError(f"{path}: not readable as safetensors: {what}") from None


def read_state_dict(path: str | Path) -> Mapping[str, Any]:
    """A state dict from safetensors or from a file of `torch.save`; values may be plain Python values, too.

    The content decides on the format, not the name. Pickles with more than tensors and plain values, and
    TorchScript archives, are refused before any code in them runs. Raises UserError.
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
    except Exception as error:  # of many types; torch's message for a pickle advises running it
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
    """The values of a state dict by name, without {"state_dict": ...} around it and "module." before names.

    Raises UserError where names are not strings, or are the same without the prefix.
    """
    inner = values.get("state_dict", values)
    if not isinstance(inner, Mapping) or not all(isinstance(name, str) for name in inner):
        raise UserError(f"{source}: not a state dict; its names are not strings")
    found = {name.removeprefix("module."): value for name, value in inner.items()}
    if len(found) < len(inner):
        raise UserError(f"{source}: holds tensors twice, with and without the prefix module.")
    return found


def check_weights(source: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError naming the tensors that cannot be weights: weights are finite real floating point.

    Counters of batch norms are integers. Empty tensors are refused, and tensors that claim more values than
    the file has, so that memory use is bounded by the size of the file.
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
        return f"{list(tensor.shape)} has no values"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"{list(tensor.shape)} claims more values than the file has"
    if name.endswith(_COUNTER):
        return None if tensor.dtype == torch.int64 and tensor.ndim == 0 else "a counter is one int64"
    if tensor.dtype not in _FLOATS:
        return f"{tensor.dtype}; real floating point is needed"
    return None if tensor.float().isfinite().all() else "has values that are NaN or infinite"


def mistaken_for_weights(path: str | Path) -> str | None:
    """What a file is, if it is of a common kind without weights that we can read; None for other files."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
        if not head:
            return "empty; download or copy it again"
        if head.startswith(b"PK"):
            return _archive(path)
    except OSError:  # the next read raises it
        return None
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((what for start, what in _MISTAKEN.items() if text.startswith(start)), None)


def _archive(path: Path) -> str | None:
    """What a zip archive is, if it is not a complete file of torch.save; nothing is unpacked to the disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {name.partition("/")[2] for name in archive.namelist()}
            if "constants.pkl" in entries:
                return _torchscript(path)
            if "data.pkl" not in entries or any(map(_is_packed, archive.infolist())):
                named = ", ".join(sorted(archive.namelist())[:3])
                return f"a zip archive, but not one of torch.save ({named}, ...); unpack it, if it is inside"
            damaged = archive.testzip()  # torch does not verify the checksums
            return f"damaged: the checksum of {damaged} is wrong; copy it again" if damaged else None
    # `zipfile` raises these where bytes of the archive were altered. It raises NotImplementedError where an
    # altered header names a version of zip, or an encryption, that `zipfile` does not support.
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        return "damaged or cut short; download or copy it again"


def _is_packed(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is compressed or encrypted, which torch.save never does."""
    return bool(entry.compress_type or entry.flag_bits & 1)


def _torchscript(path: Path) -> str:
    files = shlex.join([str(path), str(path.with_name(f"{path.stem}-state.pt"))])
    return (
        "a TorchScript archive, which is a program; if you trust it, this command runs it once to extract "
        'its tensors; then use the second file: python -c "import sys, torch; torch.save('
        f"torch.jit.load(sys.argv[1], map_location='cpu').state_dict(), sys.argv[2])\" {files}"
    )


def _is_safetensors(path: Path) -> bool:
    """Whether the file begins like safetensors: the length of a JSON header, and its brace."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


# Whether tensors fit a network, by name and shape.


LINES = 8  # of an error


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def misfits(needed: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]) -> list[str]:
    """A line for each tensor that has another shape, is missing, or is unknown, in the order of `needed`."""
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
    """Raise UserError with the first of `lines`, if there are any."""
    if lines:
        more = [f"  ... and {len(lines) - LINES} more"] if len(lines) > LINES else []
        raise UserError("\n".join([f"{source}: {advice}", *(f"  {line}" for line in lines[:LINES]), *more]))
