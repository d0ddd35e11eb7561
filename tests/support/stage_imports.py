"""Which of the project's files a stage imports: read from the sources, so that late imports count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Version and the late `csdn.load`: every import of the package passes through it, no stage uses what it says.
PACKAGE = "csdn/__init__.py"


def files_of_stage(stage: str) -> set[str]:
    """Paths, relative to the root, of the stage's own file and of what it imports from csdn, transitively."""
    found: set[str] = set()
    waiting = [f"stages/{stage}.py"]
    while waiting:
        path = waiting.pop()
        if path not in found and path != PACKAGE:
            found.add(path)
            waiting += imported_files(path)
    return found


def imported_files(path: str) -> set[str]:
    """Files of csdn that one file imports at run time, with the packages that they lie in."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names = {name for node in _running(tree) for name in _imported_names(node)}
    return {file for name in names for file in _files_of(name)}


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _running(child)


def _imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def _files_of(name: str) -> Iterator[str]:
    """The file of a dotted name, if it is a module of csdn, and the __init__.py of each package above it."""
    parts = name.split(".")
    if parts[0] != "csdn":
        return
    for length in range(1, len(parts) + 1):
        module = Path(*parts[:length])
        for file in (module.with_suffix(".py"), module / "__init__.py"):
            if (ROOT / file).is_file():
                yield file.as_posix()
