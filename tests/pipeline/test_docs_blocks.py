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

import pytest
from PIL import Image
from repository import make_repository
from workspace import ROOT, run

from csdn.synthetic.sets import write_images

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
_BLOCK = re.compile(r"(?:<!-- (.*?) -->\s*)?^```(sh|bash|console|python|pycon)\b.*?\n(.*?)^```$", re.M | re.S)
_INDENTED = re.compile(r"\n\n {4}(?:csdn|dvc|git|make|pip|prefect|python|ray) .*")
_ALL = re.compile(r"<!-- all (run by .*?) -->")
# What the pages call things of their readers, and what stands for it here.
STAND_INS = {"DROP": "builtin:demo", "--out DIR": "--out demo-people", "3f9c2a": "builtin:demo"}
FILES = ("night.jpg", "night-1.jpg", "night-2.jpg", "gate/ana.jpg", "yard/0815.jpg")


class Block(NamedTuple):
    mark: str
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    of_all = _ALL.search(text)
    return [
        Block(of_all[1] if of_all else mark, language, content)
        for mark, language, content in _BLOCK.findall(text)
    ]


RUN_HERE = {
    page: [b for b in blocks(page) if not b.mark.startswith(("run by ", "not run: "))] for page in PAGES
}


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
