"""What an installation costs: seconds and size of a new environment for each extra (docs/install.md).

Each environment is made in a temporary folder and removed. uv is used where it is there, else pip, both with
an empty cache for the first environment; the later ones find in it what that one has downloaded.

    python benchmarks/install.py                          # all of EXTRAS
    python benchmarks/install.py search service --pip     # some, with pip
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = (
    "",
    "search",
    "service",
    "export",
    "pipeline",
    "ray",
    "prefect",
    "s3",
    "gcs",
    "azure",
    "all",
    "all,test",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extras", nargs="*", default=EXTRAS)
    parser.add_argument("--pip", action="store_true", help="pip, even where uv is installed")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the environments")
    options = parser.parse_args()
    uv = None if options.pip else shutil.which("uv")
    print(f"| {'uv' if uv else 'pip'} | seconds | GiB | packages |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"UV_CACHE_DIR": f"{folder}/cache", "PIP_CACHE_DIR": f"{folder}/cache"}
        for extra in options.extras:
            environment = Path(folder, "environment")
            seconds = install(environment, extra, uv, options.python)
            packages = len(list(environment.glob("lib/python3*/site-packages/*.dist-info")))
            print(
                f"| `csdn[{extra}]` | {seconds:.0f} | {size(environment) / 2**30:.2f} | {packages} |",
                flush=True,
            )
            shutil.rmtree(environment)


def install(environment: Path, extra: str, uv: str | None, python: str) -> float:
    """Make the environment with the project and that extra in it; returns the seconds it took."""
    started = time.monotonic()
    subprocess.run([python, "-m", "venv", environment], check=True)
    command = (
        [uv, "pip", "install", "--python", environment / "bin/python"]
        if uv
        else [environment / "bin/python", "-m", "pip", "install"]
    )
    wanted = f"{ROOT}[{extra}]" if extra else str(ROOT)
    subprocess.run([*command, "--quiet", "-c", ROOT / "constraints.txt", wanted], check=True)
    return time.monotonic() - started


def size(folder: Path) -> int:
    """Bytes of the files in a folder; what links to a file of the cache counts here too."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
