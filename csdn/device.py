"""Where torch computes, and with how many threads."""

from __future__ import annotations

import torch

from csdn.process import available_cores


def configure_torch(threads: int, device: str, precision: str = "float32") -> torch.device:
    """Set threads (0: one per core) and repeatable arithmetic; "auto" takes a GPU if there is one.

    precision: "tf32" lets a GPU multiply float32 matrices with 10 bits of fraction; others do not.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads or available_cores())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # A GPU has no repeatable form of some operations: there it warns instead of stopping.
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # nobody here reads memory before writing it
    return torch.device(device)
