"""Why the text helps: stage 2 with the texts, with other tables in their place, and without (research/text.md).

    python research/text.py --out /tmp/text                      the demo's people and settings
    python research/text.py --out /tmp/text --epochs 2           trained for shorter
    python research/text.py --out /tmp/text --first 40001        other people, to choose a setting

A run is one seed with one table; each adds a line to runs.csv in --out. A second call runs what is missing and
prints the tables of the setting. Everything is computed by one thread of one process. Use a new folder after a
change of the code or of params.yaml.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from ablation import HEADS
from machine import machine
from text_run import TABLES, ingested, run
from text_tables import paired

from csdn.report.tables import ABLATION_FIGURES as FIGURES
from csdn.runtime.files import atomic_write

RUNS = Path("runs.csv")
Columns = Mapping[str, Sequence[float]]  # figure -> its value with each seed
SETTING = ("first", "people", "images", "epochs", "strength")
HEAD = (f"| variant | seeds | {' | '.join(HEADS)} |", "| --- " * (2 + len(HEADS)) + "|")
INSIDE = {  # column -> (head, digits)
    "f.mAP": ("mAP of f", 1),
    "g.mAP": ("mAP of g", 1),
    "id_pool": ("id_pool, first epoch", 2),
    "id_pool_last": ("id_pool, last epoch", 2),
    "hse": ("HSE, first epoch", 2),
    "separation": ("separation by g", 2),
    "kept": ("kept of CLIP", 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of finished runs, made if need be")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--epochs", type=int, default=10, help="of stage 2")
    parser.add_argument("--strength", type=float, default=1.0, help="factor on both weights of HSE")
    parser.add_argument("--first", type=int, default=1001, help="number of the first person")
    parser.add_argument("--people", type=int, default=200, help="in all; 40 %% of them are tested on")
    parser.add_argument("--images", type=int, default=8, help="of a person and modality; a multiple of 4")
    args = parser.parse_args()
    seeds = sorted(set(args.seeds))
    if len(seeds) < 2:
        parser.error("--seeds: two or more, or there is no deviation to report")
    setting = {name: getattr(args, name) for name in SETTING}
    args.out.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(args.out):
        people = ingested(setting)
        for seed in seeds:
            for name in args.tables:
                if (name, seed) not in finished(setting):
                    append(setting | {"seed": seed, "table": name} | run(people, setting, seed, name))
        print(*report(setting, seeds, args.tables), sep="\n")


def finished(setting: Mapping[str, Any]) -> dict[tuple[str, int], dict[str, float]]:
    """The runs of a setting in runs.csv: (table, seed) -> figures."""
    about = (*SETTING, "table", "seed")
    return {
        (row["table"], int(row["seed"])): {
            name: float(value) for name, value in row.items() if name not in about
        }
        for row in rows()
        if all(float(row[name]) == setting[name] for name in SETTING)
    }


def rows() -> list[dict[str, str]]:
    if not RUNS.exists():
        return []
    with RUNS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(row: Mapping[str, Any]) -> None:
    """One more line of runs.csv; a kill leaves the old file or the new one, whole."""
    everything = [*rows(), row]
    with atomic_write(RUNS) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(everything)


def report(setting: Mapping[str, Any], seeds: Sequence[int], tables: Sequence[str]) -> Iterator[str]:
    """Lines: figures of each table, what they differ by from no text and from the text, and the insides."""
    runs = finished(setting)
    columns = {name: columns_of([runs[name, seed] for seed in seeds]) for name in tables}
    yield f"{machine()}, one thread, {date.today():%d %B %Y}"
    yield f"{', '.join(f'{name} {value:g}' for name, value in setting.items())}, seeds {seeds}"
    yield "\nrank-1 and mAP in %, mean ± standard deviation over the seeds\n"
    yield from HEAD
    yield from (line(name, len(seeds), columns[name]) for name in tables)
    for reference in [name for name in ("none", "text") if name in tables]:
        others = [name for name in tables if name != reference]
        yield f"\ndifference to `{reference}` seed by seed, mean ± standard error\n"
        yield from HEAD
        yield from (line(name, len(seeds), columns[name], columns[reference]) for name in others)
    yield "\nmeans over the seeds\n"
    yield f"| variant | {' | '.join(head for head, _ in INSIDE.values())} |"
    yield "| --- " * (1 + len(INSIDE)) + "|"
    for name in tables:
        cells = [
            f"{statistics.fmean(columns[name][what]):.{digits}f}" for what, (_, digits) in INSIDE.items()
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def columns_of(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def line(name: str, seeds: int, of: Columns, less: Columns | None = None) -> str:
    """A table's figures in Markdown, or by how much they are above those of another."""
    spreads = [
        paired(of[figure], less[figure])
        if less
        else (statistics.fmean(of[figure]), statistics.stdev(of[figure]))
        for figure in FIGURES
    ]
    return f"| {name} | {seeds} | {' | '.join(f'{mean:.1f} ± {spread:.1f}' for mean, spread in spreads)} |"


if __name__ == "__main__":
    main()
