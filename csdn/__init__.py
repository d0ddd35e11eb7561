"""CSDN: visible-infrared person re-identification, trained in production.

>>> model = csdn.load("models/embedding")  # doctest: +SKIP
>>> features = model.embed_files(["a.jpg", "b.jpg"], modality="infrared")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`csdn.load`, imported when it is used: it needs torch, and the rest of the package often does not."""
    if name == "load":
        from csdn.search.embedder import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
