"""`csdn ablation` queues the table of method variants over seeds, `csdn table` prints what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csdn.ablation import VARIANTS
from csdn.ablation import table as as_table
from csdn.ablation_file import measured_table, write_table
from csdn.ablation_runs import finished, queue
from csdn.errors import UserError


def ablation(
    variants: Annotated[list[str] | None, typer.Argument(help=f"Some of: {', '.join(VARIANTS)}.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... of each variant.")] = 3,
) -> None:
    """Queue the ablation as DVC experiments; `dvc exp run --run-all` runs them, `csdn table` shows them."""
    count = queue(variants or list(VARIANTS), range(seeds))
    print(f"{count} experiments are queued. Run them: dvc exp run --run-all   Then: csdn table")


def table(
    out: Annotated[
        Path | None,
        typer.Option(help="A file for the table too; metrics/ablation.json is what the report shows."),
    ] = None,
) -> None:
    """The ablation's experiments as a table: mean and deviation over the seeds, in percent."""
    commit, experiments = finished()
    if not experiments:
        raise UserError("no experiment of the ablation has figures yet: csdn ablation, dvc exp run --run-all")
    measured = measured_table(commit, experiments)
    print(*as_table(measured.lines), sep="\n")
    if out is not None:
        write_table(out, measured)
        print(f"{out}: written")
