"""Kill the pipeline at random moments; each resumed run must end with the bytes of an uninterrupted run.

    python benchmarks/kill.py                          # prints a table; exit status 1 if any byte differs
    python benchmarks/kill.py --out docs/resume.md     # also replaces the last section of that page

Stages, signals and their targets alternate. The moments are drawn from the whole time between the start of
the stage and the end of the DVC run: imports, computation, writing of outputs, and DVC storing them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from campaign import Campaign, Outcome
from killed_run import points
from machine import machine

HEADING = "## The campaign\n"
COLUMNS = ("point", "stage", "killed", "after", "at", "continued from", "every output equal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="page whose last section is replaced by the table")
    options = parser.parse_args()
    began = time.monotonic()
    rows = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    print(*rows, sep="\n")
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder))
        for number, point in enumerate(points(options.points, options.seed), 1):
            outcome = campaign.try_point(point)
            different += bool(outcome.differs)
            rows.append(row(number, outcome))
            print(rows[-1], flush=True)
    minutes = (time.monotonic() - began) / 60
    ending = (
        f"{options.points} points, {different} with other bytes than the uninterrupted run, "
        f"in {minutes:.0f} minutes."
    )
    print(ending)
    if options.out:
        lines = [f"{date.today()}, {machine()}.", ending, "", *(f"| {line} |" for line in rows)]
        write(options.out, lines)
    sys.exit(different > 0)


def row(number: int, outcome: Outcome) -> str:
    point = outcome.point
    equal = "yes" if not outcome.differs else f"NO: {', '.join(outcome.differs)}"
    when = (f"{outcome.seconds:.1f} s", f"{100 * point.moment:.0f} %")
    return " | ".join([str(number), point.stage, outcome.killed, *when, outcome.found, equal])


def write(page: Path, lines: list[str]) -> None:
    """Replace the page's last section."""
    text, found, _ = page.read_text(encoding="utf-8").partition(HEADING)
    if not found:
        sys.exit(f"{page}: has no line {HEADING.strip()!r}")
    page.write_text(text + HEADING + "\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
