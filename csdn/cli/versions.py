"""The versions that a report of a mistake must name: `csdn --version -v`, and a line of `csdn doctor`."""

from __future__ import annotations

import platform
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

PACKAGES = ("torch", "open_clip_torch", "ray", "dvc", "prefect")


def package_versions() -> list[str]:
    """A line for Python, the main packages and CUDA. None of them is imported, which would take seconds."""
    lines = [f"python {platform.python_version()}, {platform.platform()}"]
    for name in PACKAGES:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} not installed")
    if (torch := find_spec("torch")) is not None and torch.origin:
        cuda = run_path(str(Path(torch.origin).with_name("version.py")))["cuda"]
        lines.append(f"CUDA {cuda}, in torch" if cuda else "CUDA not in this build of torch")
    return lines
