"""The pages of the site that are made from the code (tools/docs_reference.py) have what the code has."""

from __future__ import annotations

import re

import pytest
import typer
from workspace import ROOT

from csdn.cli.main import app
from csdn.params import leaves, load_params
from tools.docs_reference import (
    MODULES,
    commands,
    loaded_from_elsewhere,
    notebook,
    parameters,
    with_links_of_the_site,
)

TABLE = parameters((ROOT / "params.yaml").read_text(encoding="utf-8"))


def test_every_parameter_has_a_row_with_its_value():
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (?:`(.*?)`|\(empty\)) \|", TABLE, re.MULTILINE))
    values = dict(leaves(load_params(ROOT / "params.yaml").model_dump()))
    assert rows.keys() == values.keys() | {"ingest.grey16_range"}  # an empty mapping has no leaves
    assert {name for name, value in rows.items() if not value} == {n for n, v in values.items() if v is None}


def test_a_row_says_what_is_allowed():
    assert "| `evaluation.shots` | (empty) | 1 &#124; 10, or empty |" in TABLE
    assert "| `gate.confidence` | `0.95` | number > 0 and < 1 | of the intervals |" in TABLE


def test_every_command_has_a_section():
    found = commands()
    group = typer.main.get_command(app).commands
    named = [*group, *(f"gallery {name}" for name in group["gallery"].commands)]
    assert [name for name in named if f"`csdn {name}`\n" not in found] == []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_with_a_page_is_in_the_navigation(name):
    assert (ROOT / MODULES[name][1].replace(".", "/")).with_suffix(".py").is_file()
    assert f"reference/python/{name}.md" in (ROOT / "mkdocs.yml").read_text()


def test_links_lead_to_pages_of_the_site_or_become_names():
    text = "[a](../research/gate.md) [b](../README.md#x) [c](gate.md) [d](quickstart.ipynb)"
    assert with_links_of_the_site(text, "method.md") == (
        "[a](research/gate.md) b (`README.md`) [c](gate.md) [d](quickstart.md)"
    )
    assert with_links_of_the_site("[a](../docs/gate.md)", "research/text.md") == "[a](../gate.md)"


def test_a_page_that_loads_something_from_elsewhere_is_found():
    page = (
        '<a href="https://x"><img src="a.png"><script src="//cdn/a.js"></script><link href=https://f/a.css>'
    )
    assert loaded_from_elsewhere(page) == ["//cdn/a.js", "https://f/a.css"]


def test_the_notebook_shows_its_outputs():
    page = notebook((ROOT / "docs/quickstart.ipynb").read_text(encoding="utf-8"))
    assert "```python\nimport tempfile" in page and "```text\n80 people, 320" in page
    assert "](data:image/png;base64," in page
