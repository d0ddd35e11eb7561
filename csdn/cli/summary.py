"""The summary after `dvc repro`, which `csdn summary` shows again: figures, times, where the report is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

from csdn.evaluation.headline import notes, open_set_lines, table_lines
from csdn.runtime.console import duration, read_times
from csdn.runtime.documents import expected_in, read_json

FIGURES = Path("metrics/evaluation.json")
PAGE = Path("report/index.html")
COLUMNS = 80
STAGES = ("ingest", "prompts", "embedding", "evaluate", "report")


def show_unless_deferred() -> None:
    """For the last stage; with CSDN_SUMMARY=later, `make demo` shows it, even if no stage had to run."""
    if os.environ.get("CSDN_SUMMARY") != "later":
        show()


def show() -> None:
    """Print the summary; raises UserError before the first evaluation."""
    print("", *_lines(), sep="\n")


def _lines() -> Iterator[str]:
    advice = "`dvc repro` makes it"
    figures = read_json(FIGURES, advice)
    with expected_in(FIGURES, advice):
        lines, remarks = [*table_lines(figures), _unit(figures)], notes(figures["counts"])
        open_set = [*open_set_lines(figures)]
    yield from lines
    for line in open_set:
        yield fill(f"Open set, {line}", COLUMNS, subsequent_indent="      ")
    for note in remarks:
        yield fill(f"Note: {note}", COLUMNS, subsequent_indent="      ")
    times = read_times()
    if times:
        yield "Took: " + ", ".join(f"{name} {duration(times[name])}" for name in STAGES if name in times)
    if PAGE.is_file():
        yield f"The report: {PAGE}"
        yield f"            {PAGE.absolute().as_uri()}"


def _unit(figures: Mapping[str, Any]) -> str:
    trials = max(count["trials"] for count in figures["counts"].values())
    return "Percent" + (f", mean ± standard deviation over {trials} galleries" if trials > 1 else "")
