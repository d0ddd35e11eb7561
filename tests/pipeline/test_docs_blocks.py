"""Every block of shell or Python on the pages is run by a test, or says why not.

An HTML comment before the block says which: `<!-- run by tests/... -->` names a test that reads the page
(`<!-- all run by tests/... -->` for all blocks of a page), `<!-- not run: reason -->` says why none does. A
block without a comment is run here, in a project that `dvc repro` has trained on the built-in people, with
images in the places that the pages name.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image
from repository import make_repository
from workspace import ROOT, run

from csdn.synthetic.sets import write_images

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
_BLOCK = re.compile(
    r"(?:<!-- ([^>]*) -->\s*)?^```(sh|bash|console|python|pycon)\b.*?\n(.*?)^```$", re.M | re.S
)
_INDENTED = re.compile(r"\n\n {4}(?:csdn|dvc|git|make|pip|prefect|python|ray) .*")
_ALL = re.compile(r"<!-- all (run by .*?) -->")
# Names on the pages, and what stands for them here.
STAND_INS = {"--out DIR": "--out demo-people"}
FILES = ("night.jpg", "night-1.jpg", "night-2.jpg", "gate/ana.jpg", "yard/0815.jpg")


class Block(NamedTuple):
    mark: str
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    of_all = _ALL.search(text)
    found = [Block(*groups) for groups in _BLOCK.findall(text)]
    return [block._replace(mark=of_all[1]) for block in found] if of_all else found


RUN_HERE = {page: [block for block in blocks(page) if not block.mark] for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_block_is_run_or_says_why_not(page):
    for block in blocks(page):
        mark = re.fullmatch(r"(?:run by (\S+)|not run: .+)?", block.mark)
        assert mark, f"neither `run by` nor `not run`: {block.mark!r}, before\n{block.text}"
        if mark[1]:
            assert page.name in (ROOT / mark[1]).read_text(encoding="utf-8"), f"{mark[1]} does not read it"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_stand_in_fences(page):
    """Or they would be no block above."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert not _INDENTED.findall(text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project after `dvc repro`, with less training than the demo, and the files of the pages' readers."""
    folder = tmp_path_factory.mktemp("docs") / "project"
    project = make_repository(folder, address="builtin:demo", **{"prompts.tokens.epochs": 2})
    run(project, "dvc", "repro", "evaluate")
    shutil.copytree(project / "models/embedding", project / "champion/embedding")
    write_images("tiny", project / "cameras/2026-11")
    infrared = sorted((project / "cameras/2026-11/infrared").rglob("*.png"))
    (project / "unknown").mkdir()
    for source in infrared[:3]:
        shutil.copy(source, project / "unknown")
    for name in FILES:
        (project / name).parent.mkdir(exist_ok=True)
        Image.open(infrared[0]).save(project / name)
    return project


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if RUN_HERE[page]], ids=lambda page: page.stem)
def test_blocks_without_a_mark_run(trained, page, tmp_path):
    project = shutil.copytree(trained, tmp_path / "project", symlinks=True)
    for _, language, text in RUN_HERE[page]:
        for words, here in {**STAND_INS, "/data/": f"{project}/"}.items():
            text = text.replace(words, here)
        program = ("python", "-c") if language == "python" else ("bash", "-e", "-c")
        run(project, *program, text)


def test_the_notebook_is_committed_with_small_outputs():
    """Without outputs its page would show no picture; with large ones Git would grow at each run."""
    assert (ROOT / "docs/quickstart.ipynb").stat().st_size < 100_000
    cells = nbformat.read(ROOT / "docs/quickstart.ipynb", as_version=4).cells
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", ()))


@pytest.mark.slow
def test_the_notebook_runs(trained):
    notebook = nbformat.read(ROOT / "docs/quickstart.ipynb", as_version=4)
    where = {"metadata": {"path": str(trained)}}
    cells = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute().cells
    printed = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", ()))
    assert "80 people, 320 images in the gallery, 80 queries" in printed
    assert float(re.search(r"rank-1: ([\d.]+)%", printed)[1]) > 1.25  # chance
    assert re.search(r"threshold 0\.\d{3}: \d+ of 80 queries have a match", printed)
