"""Miniatures of the public benchmarks: built-in people in the exact folders and lists of the real ones.

They show that a layout, a protocol and the way from folder to figures work; their figures say nothing of the
benchmarks. The same call writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from csdn.builtin.mini.llcm import llcm_files
from csdn.builtin.mini.regdb import regdb_files
from csdn.builtin.mini.sysu import sysu_files
from csdn.errors import UserError
from csdn.files import replace_folder

# Path below the root and content of every file.
MINIATURES: dict[str, Callable[[], Iterator[tuple[str, bytes]]]] = {
    "sysu": sysu_files,
    "regdb": regdb_files,
    "llcm": llcm_files,
}


def write_miniature(name: str, out: str | Path) -> int:
    """Write a miniature of the benchmark `name` to the folder `out`, whole or not at all; returns its files.

    Raises UserError for an unknown benchmark and for a folder that holds something already.
    """
    if name not in MINIATURES:
        raise UserError(f"no benchmark is called {name!r}; there are: {', '.join(MINIATURES)}")
    out = Path(out).resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; name another, nothing was written")
    count = 0
    with replace_folder(out) as folder:
        for path, data in MINIATURES[name]():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            count += 1
    return count
