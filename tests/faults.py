"""docs/faults.md: the bad inputs and faults that tests have tried, with what each gave, in the program's words.

A test says `fault("area", "what is wrong", "what it gave")`. It fails where that is not what the page says;
`pytest --write-faults` writes the page. A row stays for as long as its second text stands in a test file.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "faults.md"
AREAS = (
    "drops and images",
    "ledger",
    "parameters",
    "shards and index",
    "training",
    "disk and memory",
    "processes",
    "weights and checkpoints",
    "report",
)
INTRODUCTION = """# Bad inputs and faults

What was tried, and what it gave: the message that the user sees, or what the next run does. Each line comes from a test, which fails
when the message is another one; `pytest --write-faults` writes this page. Folders of the tests are left out, hashes are shown as `…`.
"""

Rows = dict[tuple[str, str], str]  # (area, what is wrong) -> what it gives


def shown(text: str) -> str:
    """A message as a cell of the page: nothing in it depends on the run, on one line, safe in Markdown."""
    text = re.sub(r"/[^\s'\"`]*?/pytest-\d+/(?:popen-gw\d+/)?[^/\s'\"`]+/?", "", text.strip())
    text = re.sub(r"\b[0-9a-f]{12,64}\b", "…", text)
    text = re.sub(r"\b(PID|pid|process) \d+", r"\1 …", text)
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", "<br>")


def read_page() -> Rows:
    """The rows of docs/faults.md as they stand."""
    rows: Rows = {}
    area = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else ():
        if line.startswith("## "):
            area = line.removeprefix("## ").lower()
        elif line.startswith("| ") and not line.startswith(("| what ", "|---")):
            what, gives = re.split(r"(?<!\\)\|", line)[1:3]
            rows[area, what.strip()] = gives.strip()
    return rows


def write_page(found: Mapping[tuple[str, str], str]) -> None:
    """Lay `found` over the rows that are there; rows that no test speaks of any more go."""
    tests = "".join(path.read_text(encoding="utf-8") for path in sorted(TESTS.glob("test_*.py")))
    rows = {key: gives for key, gives in (read_page() | dict(found)).items() if key[1] in tests}
    parts = [INTRODUCTION]
    for area in AREAS:
        if lines := [f"| {what} | {gives} |\n" for (of, what), gives in sorted(rows.items()) if of == area]:
            parts.append(f"\n## {area.capitalize()}\n\n| what is wrong | what it gives |\n|---|---|\n")
            parts += lines
    PAGE.write_text("".join(parts), encoding="utf-8")
