"""What the losses refuse: by broadcasting, tensors that do not fit would give a number all the same."""

from __future__ import annotations

from torch import Tensor


def check_rows(name: str, features: Tensor, labels_name: str, labels: Tensor) -> None:
    """Raise ValueError unless features are [n, d] and labels integers [n]."""
    for what, found in ((name, features), (labels_name, labels)):
        if not isinstance(found, Tensor):
            raise ValueError(f"{what} is a {type(found).__name__}; a tensor is needed (torch.from_numpy)")
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(f"{name} is {described(features)}; floats [rows, numbers] are needed")
    if labels.shape != features.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"{labels_name} is {described(labels)}; one integer for each of the {len(features)} rows of "
            f"{name} is needed"
        )


def check_same_width(name: str, one: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both are matrices of as many columns."""
    if other.ndim != 2 or one.shape[1] != other.shape[1]:
        found = f"{name} is {described(one)}, {other_name} {described(other)}"
        raise ValueError(f"{found}; rows of the same length are needed")


def check_table(labels: Tensor, table: Tensor) -> None:
    """Raise ValueError where a label is no row of the table; a GPU is not asked, as that waits for it."""
    if labels.device.type == "cpu" and len(labels):
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= len(table):
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"label {wrong} is no row of the text table (0 to {len(table) - 1})")


def described(tensor: Tensor) -> str:
    """As in "float32 [8, 16]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
