"""The ablation: what each part of the method contributes, as DVC experiments over several seeds.

    python benchmarks/ablation.py                              every variant, seeds 0, 1 and 2
    python benchmarks/ablation.py baseline sii --seeds 0 1     some of them

It is run in the project's root folder. An experiment is params.yaml with a few values changed; `dvc exp run`
trains it in a temporary copy of the project, which shares DVC's cache: the working tree is not touched, and
stages that no value changes are not run. An experiment belongs to the commit it began from, so changes are
committed first, and one that this commit has is not run again. The table is printed and written to
metrics/ablation.json; the report shows it from the next `dvc repro` on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csdn.params import leaves, load_params, parse_params
from csdn.report.tables import ABLATION_FIGURES, AblationFile, AblationTable, Spread, Variant, decisive
from csdn.runtime.files import write_json

OUT = Path("metrics/ablation.json")
# Name -> what differs from the method, and the parameters that it changes. The first seven differ in the text
# that stage 2 uses for a person.
VARIANTS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "baseline": (
        "no text in stage 2",
        {"embedding.losses.hse_visible": 0.0, "embedding.losses.hse_infrared": 0.0},
    ),
    "shared": ("one prompt for both modalities", {"model.integration": "shared"}),
    "visible": ("the visible text alone", {"model.integration": "visible"}),
    "infrared": ("the infrared text alone", {"model.integration": "infrared"}),
    "sum": ("the sum of both texts", {"model.integration": "sum"}),
    "concat": ("a linear map of both texts", {"model.integration": "concat"}),
    "sii": ("SII: the method", {"model.integration": "sii"}),
    "no-msel": ("without MSEL", {"embedding.losses.msel": 0.0}),
    "no-triplet": ("without the triplet loss", {"embedding.losses.triplet": 0.0}),
    "hse-visible": ("text for visible images alone", {"embedding.losses.hse_infrared": 0.0}),
    "hse-infrared": ("text for infrared images alone", {"embedding.losses.hse_visible": 0.0}),
}
HEADS = ("IR → VIS rank-1", "IR → VIS mAP", "VIS → IR rank-1", "VIS → IR mAP")  # of ABLATION_FIGURES


@dataclass(frozen=True)
class Experiment:
    """A finished run of a variant; `inputs` are its code, data and parameters without those that differ."""

    variant: str
    seed: int
    figures: Mapping[str, float]  # those of ABLATION_FIGURES that its protocol has, percent
    test_people: int
    inputs: Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "variants", nargs="*", metavar="VARIANT", help=f"of: {', '.join(VARIANTS)}; all by default"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    if unknown := set(arguments.variants) - set(VARIANTS):
        parser.error(f"no variant is called {', '.join(sorted(unknown))}; there are: {', '.join(VARIANTS)}")
    chosen = arguments.variants or list(VARIANTS)
    copied = outside_git(load_params().model.weights)
    if not in_git("dvc.lock"):
        print("dvc.lock is not in Git, so every experiment ingests the data again; commit it to avoid that")
    if changed := uncommitted():
        parser.error(f"commit these changes first, or undo them: {', '.join(changed)}")
    names = {experiment_name(variant, seed) for variant in chosen for seed in arguments.seeds}
    _, done = finished(names)
    there = {(one.variant, one.seed) for one in done}
    for seed in sorted(set(arguments.seeds)):
        for variant in chosen:
            if (variant, seed) not in there:
                run(variant, seed, copied)
    table = measured_table(*finished(names))
    write_json(OUT, AblationFile(measured=table).model_dump())
    print(*markdown(table.variants), sep="\n")
    print(f"{OUT}: written; `dvc repro` shows it in the report")


# The experiments.


def run(variant: str, seed: int, copied: Sequence[str]) -> None:
    """Run one experiment in place of another commit's of its name; ends the program if it fails."""
    name = experiment_name(variant, seed)
    # `dvc exp run --force` would replace it too, but train every stage again.
    subprocess.run(["dvc", "exp", "remove", "--quiet", name], check=False, stderr=subprocess.DEVNULL)
    if subprocess.run(command(variant, seed, copied), check=False).returncode:
        raise SystemExit(
            f"{name} failed, as said above; what is computed is kept: repair it and run this again"
        )


def experiment_name(variant: str, seed: int) -> str:
    return f"ablation-{variant}-seed-{seed}"


def command(variant: str, seed: int, copied: Sequence[str] = ()) -> list[str]:
    """The command that runs one experiment; `copied`: what a clone lacks, so that DVC has to copy it."""
    changes = {"seed": seed, **VARIANTS[variant][1]}
    settings = [part for key, value in changes.items() for part in ("-S", f"{key}={value}")]
    copies = [part for path in copied for part in ("--copy-paths", path)]
    name = ["--name", experiment_name(variant, seed)]
    return ["dvc", "exp", "run", "--temp", *name, *copies, *settings, "evaluate"]


def outside_git(weights: str) -> list[str]:
    """The part of the weights that a clone lacks: nothing, their folder, or only the file.

    DVC copies a file only into an existing folder; so a folder that is not in Git is copied as a whole.
    """
    folder = str(Path(weights).parent)
    return [] if in_git(weights) else [weights if in_git(folder) else folder]


def uncommitted() -> list[str]:
    """The changed files in Git that decide an experiment; its own results do not."""
    files = output("git", "diff", "--name-only", "HEAD").splitlines()
    return [file for file in files if file != "dvc.lock" and not file.startswith("metrics/")]


def in_git(path: str) -> bool:
    return bool(output("git", "ls-files", "--", path))


def output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def finished(names: set[str]) -> tuple[str, list[Experiment]]:
    """The current commit, and its experiments of these names as `dvc exp show` lists them."""
    shown = json.loads(output("dvc", "exp", "show", "--json"))
    commit = next(one for one in shown if one["rev"] != "workspace")
    return commit["rev"], [read(one) for one in commit["experiments"] or [] if one["name"] in names]


def read(shown: Mapping[str, Any]) -> Experiment:
    """An experiment from its entry in `dvc exp show --json`."""
    variant, _, seed = shown["name"].removeprefix("ablation-").rpartition("-seed-")
    data = shown["revs"][0]["data"]
    metrics = data["metrics"]["metrics/headline.json"]["data"]
    params = parse_params(data["params"]["params.yaml"]["data"], source=f"{shown['name']}: params.yaml")
    parameters = decisive(dict(leaves(params.model_dump())))
    given = {
        path: dep["hash"]
        for path, dep in data["deps"].items()
        if path.startswith(("data/", "csdn/", "stages/"))
    }
    return Experiment(
        variant,
        int(seed),
        {name: value for name, value in leaves(metrics) if name in ABLATION_FIGURES and value is not None},
        metrics["test_people"],
        given | {key: value for key, value in parameters.items() if key not in VARIANTS[variant][1]},
    )


# The table.


def measured_table(commit: str, experiments: Sequence[Experiment]) -> AblationTable:
    """The experiments as a table. Ends the program if they differ in more than their variants and seeds."""
    common: dict[str, tuple[Experiment, Any]] = {}
    for one in experiments:
        for key, value in one.inputs.items():
            other, known = common.setdefault(key, (one, value))
            if known != value:
                pair = [experiment_name(run.variant, run.seed) for run in (other, one)]
                raise SystemExit(
                    f"{pair[0]} ran with {key} = {known}, {pair[1]} with {value}: they have no common table. "
                    "Leave the project as it is while the ablation runs, and run it again."
                )
    inputs = {key: value for key, (_, value) in common.items()}
    return AblationTable(
        commit=commit,
        data=inputs["data/samples.parquet"],
        protocol=inputs["evaluation.protocol"],
        test_people=experiments[0].test_people,
        parameters={key: value for key, value in inputs.items() if "/" not in key},
        variants=list(over_seeds(experiments)),
    )


def over_seeds(experiments: Sequence[Experiment]) -> Iterator[Variant]:
    """The variants in order: mean and sample deviation of the figures that all experiments have."""
    figures = [name for name in ABLATION_FIGURES if all(name in one.figures for one in experiments)]
    for variant, (difference, _) in VARIANTS.items():
        runs = sorted((one for one in experiments if one.variant == variant), key=lambda one: one.seed)
        if runs:
            spreads = {name: spread([one.figures[name] for one in runs]) for name in figures}
            seeds = [one.seed for one in runs]
            yield Variant(variant=variant, difference=difference, seeds=seeds, figures=spreads)


def spread(values: Sequence[float]) -> Spread:
    return Spread(mean=statistics.fmean(values), std=statistics.stdev(values) if len(values) > 1 else None)


def markdown(variants: Sequence[Variant]) -> list[str]:
    """The table in Markdown: mean and deviation over the seeds, in percent."""
    heads = [head for name, head in zip(ABLATION_FIGURES, HEADS, strict=True) if name in variants[0].figures]
    rows = [["variant", "what differs", "seeds", *heads], ["---"] * (3 + len(heads))]
    for one in variants:
        rows.append(
            [f"`{one.variant}`", one.difference, str(len(one.seeds)), *map(cell, one.figures.values())]
        )
    return [f"| {' | '.join(row)} |" for row in rows]


def cell(figure: Spread) -> str:
    return f"{figure.mean:.1f}" + ("" if figure.std is None else f" ± {figure.std:.1f}")


if __name__ == "__main__":
    main()
