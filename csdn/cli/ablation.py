"""`csdn ablation` queues the variants of the method as DVC experiments; `csdn table` shows their figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from csdn.params import leaves, load_params, parse_params
from csdn.report.ablation import (
    FIGURES,
    VARIANTS,
    Experiment,
    experiment_name,
    measured_table,
    variant_and_seed,
    write_table,
)
from csdn.report.ablation import table as as_table
from csdn.retraining.dvc import dvc
from csdn.retraining.git import error_text, git
from csdn.runtime.errors import UserError

# For these states DVC shows the figures of the commit.
UNFINISHED = ("queued", "running", "failed")


def command(variant: str, seed: int, copied: Sequence[str] = ()) -> list[str]:
    """The arguments of dvc that queue one experiment; `dvc exp run --run-all` runs the queue.

    copied: files and folders outside Git that DVC copies into the experiment's folder.
    """
    changes = {"seed": seed, **VARIANTS[variant]}
    settings = [part for key, value in changes.items() for part in ("-S", f"{key}={value}")]
    name = ["--queue", "--force", "--name", experiment_name(variant, seed)]
    copies = [part for path in copied for part in ("--copy-paths", path)]
    return ["exp", "run", *name, *copies, *settings]


def queue(variants: Sequence[str], seeds: Iterable[int]) -> int:
    """Queue every variant with every seed; returns how many. Raises UserError."""
    if unknown := [name for name in variants if name not in VARIANTS]:
        raise UserError(f"no variant is called {', '.join(unknown)}; there are: {', '.join(VARIANTS)}")
    copied = outside_git(load_params().model.weights)
    runs = [(variant, seed) for seed in seeds for variant in variants]
    for variant, seed in runs:
        done = dvc(Path(), *command(variant, seed, copied))
        if done.returncode:
            raise UserError(
                f"dvc could not queue {experiment_name(variant, seed)}:\n{error_text(done.stderr)}"
            )
    return len(runs)


def outside_git(weights: str) -> list[str]:
    """The part of the weights that a clone lacks: nothing, their folder, or only the file.

    DVC copies a file only into an existing folder; so a folder that is not in Git is copied as a whole.
    """
    if _in_git(weights):
        return []
    folder = str(Path(weights).parent)
    return [weights if _in_git(folder) else folder]


def _in_git(path: str) -> bool:
    return bool(git(Path(), "ls-files", "--", path))


def finished() -> tuple[str, list[Experiment]]:
    """The current commit, and DVC's newest experiment on it for each variant and seed.

    Experiments on other commits are excluded: their code differs. Raises UserError.
    """
    done = dvc(Path(), "exp", "show", "--json")
    if done.returncode:
        raise UserError(f"dvc could not show the experiments:\n{error_text(done.stderr)}")
    commit = next((one for one in json.loads(done.stdout) if one["rev"] != "workspace"), None)
    if commit is None:
        raise UserError("this project has no commit yet, and so no experiments")
    return commit["rev"], read(commit)


def read(commit: Mapping[str, Any]) -> list[Experiment]:
    """The ablation's experiments of a commit, as `dvc exp show --json` lists it."""
    newest: dict[tuple[str, int], Experiment] = {}
    for shown in commit.get("experiments") or []:
        named = variant_and_seed(shown.get("name") or "")
        state = (shown.get("executor") or {}).get("state")
        data = (shown["revs"] or [{}])[0].get("data")
        if named and data and state not in UNFINISHED and _figures(data):
            newest.setdefault(named, _experiment(*named, data))
    return list(newest.values())


def _experiment(variant: str, seed: int, data: Mapping[str, Any]) -> Experiment:
    name = experiment_name(variant, seed)
    params = parse_params(data["params"]["params.yaml"]["data"], source=f"{name}: params.yaml")
    return Experiment(
        variant=variant,
        seed=seed,
        figures=_figures(data),
        test_people=data["metrics"]["metrics/headline.json"]["data"]["test_people"],
        parameters=dict(leaves(params.model_dump())),
        data=data["deps"]["data/samples.parquet"]["hash"],
    )


def _figures(data: Mapping[str, Any]) -> dict[str, float]:
    """The FIGURES that the experiment has; empty if it failed."""
    shown = data.get("metrics", {}).get("metrics/headline.json", {}).get("data") or {}
    return {name: value for name, value in leaves(shown) if name in FIGURES and value is not None}


def ablation(
    variants: Annotated[list[str] | None, typer.Argument(help=f"Some of: {', '.join(VARIANTS)}.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ... of each variant.")] = 3,
) -> None:
    """Queue the ablation as DVC experiments; `dvc exp run --run-all` runs them, `csdn table` shows them."""
    count = queue(variants or list(VARIANTS), range(seeds))
    print(f"{count} experiments are queued. Run them: dvc exp run --run-all   Then: csdn table")


def table_command(
    out: Annotated[
        Path | None,
        typer.Option(help="Also write the table to this file; the report shows metrics/ablation.json."),
    ] = None,
) -> None:
    """Show the ablation's experiments as a table: mean and deviation over the seeds, in percent."""
    commit, experiments = finished()
    if not experiments:
        raise UserError("no experiment of the ablation has figures yet: csdn ablation, dvc exp run --run-all")
    measured = measured_table(commit, experiments)
    print(*as_table(measured.lines), sep="\n")
    if out is not None:
        write_table(out, measured)
        print(f"{out}: written")
