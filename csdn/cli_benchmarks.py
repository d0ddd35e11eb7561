"""`csdn benchmark | mini-dataset | evaluate-features | average`: the public benchmarks by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from csdn.errors import UserError

Name = Annotated[str, typer.Argument(help="sysu, regdb or llcm.")]


def mini_dataset(
    name: Name, out: Annotated[Path, typer.Option(help="Folder to make; it must be empty or missing.")]
) -> None:
    """Write a miniature of a public benchmark, built-in people in its exact layout."""
    from csdn.builtin.mini import write_miniature

    files = write_miniature(name, out)
    print(f"{out}: {files} files. Try it: csdn benchmark {name} {out} --small")


def benchmark(
    name: Name,
    folder: Annotated[str, typer.Argument(help="Where it lies: a folder or an s3:// prefix.")],
    small: Annotated[bool, typer.Option(help="The small CLIP and little training, for a miniature.")] = False,
    trials: Annotated[str, typer.Option(help="RegDB: which of its splits, such as 1-10 or 3.")] = "1-10",
) -> None:
    """From a benchmark's folder to its figures and the report: preset, ledger, dvc repro.

    Other drops of the ledger are left out, and params.yaml gets the preset's values. RegDB trains a model for
    each trial and averages them. Repeat the command to continue what was stopped.
    """
    from csdn.benchmark_run import run_benchmark

    run_benchmark(name, folder, small, trials)


def average(
    files: Annotated[list[Path], typer.Argument(help="Copies of metrics/evaluation.json, one a model.")],
    out: Annotated[Path | None, typer.Option(help="Also write the mean figures to this file.")] = None,
) -> None:
    """Average the figures of several models: RegDB's ten trials are ten models."""
    from csdn.benchmark_run import show_average

    show_average(files, out)


def evaluate_features(
    features: Annotated[Path, typer.Argument(help="NumPy file (.npy), floats [images, numbers].")],
    protocol: Annotated[str, typer.Option(help="cameras, sysu, sysu_official, regdb, llcm, llcm_swapped.")],
    index: Annotated[
        Path, typer.Option(help="Which image each row is: `data` of this project, or a CSV file.")
    ] = Path("data"),
    mode: Annotated[str | None, typer.Option(help="SYSU-MM01: all or indoor.")] = None,
    shots: Annotated[int | None, typer.Option(help="SYSU-MM01: 1 or 10.")] = None,
    trials: Annotated[int | None, typer.Option(help="Galleries drawn; 10 if not given.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
) -> None:
    """Figures of features from a model of your own, by any protocol.

    Row n of the features is row n of the index: of the test images of data/samples.parquet in their order, or
    of a CSV file with the columns person, modality, camera and path. Features are compared by dot product.
    """
    from csdn.evaluation.own_features import evaluate_features as evaluate
    from csdn.evaluation.own_features import label_notes
    from csdn.evaluation.summary import notes, table_lines
    from csdn.files import write_json
    from csdn.index_files import read_features, read_index
    from csdn.safe import printable

    columns = read_index(index)
    given = (("mode", mode), ("shots", shots), ("trials", trials))
    options = {name: value for name, value in given if value is not None}
    try:
        figures = evaluate(read_features(features), columns, protocol, **options)
    except ValueError as error:
        raise UserError(f"{features}, with the index {index}: {error}") from None
    if out is not None:
        write_json(out, figures)
    warnings = [printable(f"WARNING: {note}") for note in label_notes(columns, protocol)]
    print(*table_lines(figures, {"features": "features"}), *notes(figures["counts"]), *warnings, sep="\n")
