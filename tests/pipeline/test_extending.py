"""docs/extending.md: its files and patches, as they stand there, make a project that trains and evaluates."""

from __future__ import annotations

import csv
import json
import re

import pytest
from repository import make_repository
from workspace import ROOT, environment, run, set_params

from csdn.synthetic.sets import write_images

PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
EXTENSIONS = ("A layout of images", "A loss of stage 2", "A backbone", "An evaluation protocol")


def fences(text: str, language: str) -> list[tuple[str, str]]:
    """(title, content) of the fences of a language."""
    return re.findall(rf'^```{language}(?: title="(.*?)")?\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_extension_is_shown_in_under_fifty_lines(name):
    blocks = [content for language in ("python", "diff") for _, content in fences(SECTIONS[name], language)]
    written = [line for block in blocks for line in block.splitlines() if line[:1] not in "@-"]
    assert 0 < len(written) < 50


def flat_drop(folder):
    """The images of builtin:tiny in the page's layout."""
    write_images("tiny", folder.parent / "cameras")
    folder.mkdir()
    for path in (folder.parent / "cameras").rglob("*.*"):
        modality, camera, person = path.relative_to(folder.parent / "cameras").parts[:3]
        kind = {"infrared": "ir", "visible": "vis"}[modality]
        path.rename(folder / f"{person}_{camera}_{kind}_{path.name}")
    return folder


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A project with all extensions, after the page's commands."""
    base = tmp_path_factory.mktemp("extending")
    drop, project = flat_drop(base / "flat"), make_repository(base / "project")
    for title, content in fences(PAGE, "python"):
        (project / title).write_text(content)
    for _, content in fences(PAGE, "diff"):
        (base / "patch").write_text(content)
        run(project, "git", "apply", str(base / "patch"))
    set_params(project, {"evaluation.protocol": "multi_shot", "evaluation.trials": 1})
    run(project, "csdn", "reject", "builtin:tiny", "--reason", "another drop")
    for _, commands in fences(PAGE, "sh"):
        commands = commands.replace("/data/flat", str(drop))
        run(project, "bash", "-e", "-c", commands, env=environment() | {"PYTHONPATH": str(project)})
    return project


@pytest.mark.slow
def test_the_layout_takes_every_image(extended):
    ingest = json.loads((extended / "metrics/ingest.json").read_text())
    assert sum(ingest["people"].values()) == 32 and not ingest["quarantined"]


@pytest.mark.slow
def test_the_loss_is_logged_and_weighed(extended):
    rows = list(csv.DictReader((extended / "models/embedding/log.csv").open()))
    assert all(0 < float(row["consistency"]) < 2 for row in rows)


@pytest.mark.slow
def test_the_backbone_is_in_the_model(extended):
    from safetensors import safe_open

    with safe_open(extended / "models/embedding/model.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("layers.")]  # noqa: SIM118, no mapping
    assert names and not any("layer4" in name for name in names)


@pytest.mark.slow
def test_the_protocol_searches_all_images_of_the_other_modality(extended):
    counts = json.loads((extended / "metrics/evaluation.json").read_text())["counts"]
    tested = json.loads((extended / "metrics/ingest.json").read_text())["images"]["test"]
    assert counts["infrared_to_visible"]["gallery"] == tested["visible"]
    assert counts["visible_to_infrared"]["gallery"] == tested["infrared"]
