"""Every file, parameter and command that README.md and the pages of docs/ and research/ name exists."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from ruamel.yaml import YAML
from workspace import ROOT

from csdn.cli.main import app

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("research/*.md"))]
PARAMS = YAML(typ="safe").load(ROOT / "params.yaml")
COMMANDS = typer.main.get_command(app).commands
FILE = r'(?<!title=")(?<![\w/.])(?:csdn|stages|flows|tests|benchmarks|research|tools)/[\w./-]+\.(?:py|yaml)\b'
LINK = r"\]\((?!https?:|reference/)([^)#]+)"  # `make docs` makes reference/, and checks the links to it
PARAMETER = r"`([a-z_]+(?:\.[a-z_0-9]+)+)[`:=]"
COMMAND = r"(?:^ *|[`&] ?)csdn ([a-z][a-z-]+)"
SUFFIXES = {"csv", "json", "parquet", "py", "safetensors"}  # `prompts.py` is a file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_in_documentation_exist(page):
    assert not list(missing(page, page.read_text(encoding="utf-8")))


def test_messages_of_troubleshooting_are_those_of_the_program():
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `(.+?)(?: ?\.\.\.)?` \|", page, re.MULTILINE)
    sources = [*ROOT.glob("csdn/**/*.py"), ROOT / "docs/faults.md"]
    said = "".join(path.read_text(encoding="utf-8") for path in sources)
    assert len(messages) > 4 and [message for message in messages if message not in said] == []


def missing(page: Path, text: str) -> Iterator[str]:
    yield from (path for path in re.findall(FILE, text) if not (ROOT / path).exists())
    yield from (link for link in re.findall(LINK, text) if not (page.parent / link).exists())
    yield from (key for key in re.findall(PARAMETER, text) if not is_parameter(key.split(".")))
    yield from (name for name in re.findall(COMMAND, text, re.MULTILINE) if name not in COMMANDS)


def is_parameter(parts: list[str]) -> bool:
    """False if the first part is a section of params.yaml and the section has no such key."""
    if parts[0] not in PARAMS or parts[-1] in SUFFIXES:
        return True
    node = PARAMS
    for part in parts:
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True
