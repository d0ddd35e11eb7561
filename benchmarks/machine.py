"""A one-line description of the machine, for the output of benchmarks."""

from __future__ import annotations

import platform
from pathlib import Path

from csdn.runtime.process import available_cores

CPUINFO = Path("/proc/cpuinfo")  # Linux


def machine() -> str:
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    models = [line.partition(": ")[2] for line in lines if "model name" in line]
    model = models[0] if models else platform.machine()
    return f"{model}, {available_cores()} cores, Python {platform.python_version()}"
