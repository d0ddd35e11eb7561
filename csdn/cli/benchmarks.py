"""Commands on public benchmarks: csdn benchmark, mini-dataset, evaluate-features, average, import-published.

`csdn benchmark` sets params.yaml and the ledger, and runs `dvc repro`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from csdn.cli.presets import apply_preset
from csdn.data.checkpoint_store import state_key
from csdn.evaluation.headline import table_lines
from csdn.ingest.identities import read_aliases
from csdn.ingest.ledger import LEDGER, SHORT, Drop, Status, change_ledger, read_ledger
from csdn.ingest.sync import open_drop
from csdn.params import load_params, set_value
from csdn.retraining.dvc import DVC, environment
from csdn.runtime.documents import expected_in, read_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import file_sha256, write_json
from csdn.runtime.sanitize import escape_control_chars
from csdn.training.champion import read_champion, write_champion

NAMES = ("sysu", "regdb", "llcm")
PARAMS = Path("params.yaml")
FIGURES = Path("metrics/evaluation.json")
TRIALS = 10
Name = Annotated[str, typer.Argument(help="sysu, regdb or llcm.")]


def benchmark(
    name: Name,
    folder: Annotated[str, typer.Argument(help="Where it is: a folder or an address of an object store.")],
    small: Annotated[
        bool, typer.Option(help="The small CLIP and a short training, for a miniature.")
    ] = False,
    trials: Annotated[str, typer.Option(help="RegDB: which of its splits, such as 1-10 or 3.")] = "1-10",
) -> None:
    """From a benchmark's folder to its figures and the report: preset, ledger, dvc repro.

    Other drops of the ledger are rejected, and params.yaml gets the preset's values. RegDB trains a model for
    each trial and averages their figures. To continue a stopped run, repeat the command.
    """
    if name not in NAMES:
        raise UserError(f"no benchmark is called {name!r}; there are: {', '.join(NAMES)}")
    numbers = parse_trials(trials)
    notes: list[str] = []
    drop, images = open_drop(folder, name, notes.append)
    trial = load_params(PARAMS).data.trial
    print(*apply_preset(name, PARAMS, small), sep="\n")
    if name == "regdb":
        set_value(PARAMS, "data.trial", trial)  # the outputs that are here belong to this trial
    weights = load_params(PARAMS).model.weights
    if not Path(weights).is_file():
        raise UserError(f"{weights} is missing: run `csdn fetch-clip`, then the same command again")
    write_champion(read_champion().model_copy(update={"start": None}))  # a champion of other people
    before = read_ledger()
    change_ledger(lambda drops: accept_only(drops, drop))
    print(f"{LEDGER}: drop {drop.id[:SHORT]} alone, {drop.address}, {images} images")
    for line in [*map(escape_control_chars, notes), *rejection_lines(before, read_ledger())]:
        print(line)
    if name == "regdb":
        _run_trials(numbers, drop)
    else:
        _repro()


def parse_trials(text: str) -> list[int]:
    """The trials in "1-10", "3" or "1,4-6", ascending; UserError outside 1..10."""
    numbers: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part, re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, 0)
        if not 1 <= first <= last <= TRIALS:
            raise UserError(
                f"--trials {text}: trials are numbers from 1 to {TRIALS}, such as 3, 1-10 or 1,4-6"
            )
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def accept_only(drops: Sequence[Drop], drop: Drop) -> list[Drop]:
    """The ledger with this drop accepted and every other one rejected, in the same order.

    The reason of a drop that this rejects has its former status.
    """

    def decide(other: Drop) -> Drop:
        if other.id == drop.id:
            return replace(other, address=drop.address) if other.status == Status.ACCEPTED else drop
        if other.status == Status.REJECTED:
            return other
        was = f"{other.status}: {other.reason}" if other.reason else str(other.status)
        return replace(
            other, status=Status.REJECTED, reason=f"{drop.layout} is evaluated alone; it was {was}"
        )

    known = any(other.id == drop.id for other in drops)
    return [*map(decide, drops), *([] if known else [drop])]


def rejection_lines(before: Sequence[Drop], after: Sequence[Drop]) -> list[str]:
    """The drops that were rejected, and how to accept them again; empty if there are none."""
    rejected = [
        new.id[:SHORT]
        for old, new in zip(before, after, strict=False)
        if new.status == Status.REJECTED != old.status
    ]
    if not rejected:
        return []
    return [
        f"Rejected for it: {', '.join(rejected)}. `csdn drops` shows what each was; to undo, for each: "
        "csdn accept DROP --reason WHY"
    ]


def _run_trials(trials: Sequence[int], drop: Drop) -> None:
    """Train and evaluate a model for each trial; figures of each, and their mean, in metrics/regdb/.

    A trial that was already evaluated with this data, these parameters and weights is not run again.
    """
    folder = FIGURES.parent / "regdb"
    folder.mkdir(exist_ok=True, parents=True)
    files = [folder / f"trial-{trial:02d}.json" for trial in trials]
    for trial, file in zip(trials, files, strict=True):
        key, key_file = trial_key(trial, drop), file.with_suffix(".key")
        if file.exists() and key_file.exists() and key_file.read_text() == key:
            print(f"RegDB, trial {trial}: {file} is there already")
            continue
        print(f"RegDB, trial {trial}", flush=True)
        set_value(PARAMS, "data.trial", trial)
        _repro()
        key_file.unlink(missing_ok=True)
        shutil.copy(FIGURES, file)
        key_file.write_text(key)
    print()
    average_command(files, folder / "average.json")


def trial_key(trial: int, drop: Drop) -> str:
    """SHA-256 of everything that decides a trial's figures."""
    params = load_params(PARAMS)
    settings = params.model_dump(exclude={"scaling", "report"})
    settings["data"]["trial"] = trial
    weights = file_sha256(Path(params.model.weights))
    aliases = read_aliases(params.data.aliases)
    return state_key(drop=drop.id, settings=settings, weights=weights, aliases=aliases)


def _repro() -> None:
    sys.stdout.flush()
    done = subprocess.run([*DVC, "repro"], env=environment(), check=False)
    if done.returncode:
        raise UserError(
            f"dvc repro failed ({done.returncode}); run the same command again to continue where it stopped"
        )


def average_command(
    files: Annotated[list[Path], typer.Argument(help="Copies of metrics/evaluation.json, one a model.")],
    out: Annotated[Path | None, typer.Option(help="Also write the mean figures to this file.")] = None,
) -> None:
    """Average the figures of several models: RegDB's ten trials are ten models."""
    from csdn.evaluation.scores import average, shape  # here, because it imports torch

    models = [_read_figures(path) for path in files]
    for path, model in zip(files, models, strict=True):
        if shape(model) != shape(models[0]):
            raise UserError(
                f"{path}: another protocol, other methods or other sizes than {files[0]}; "
                "such figures cannot be averaged"
            )
    figures = average(models)
    if out is not None:
        write_json(out, figures)
    print(*table_lines(figures), sep="\n")
    print(f"Percent, mean ± standard deviation over {len(files)} models")


def _read_figures(path: Path) -> dict[str, Any]:
    from csdn.evaluation.scores import average

    figures = read_json(path)
    with expected_in(path, "give files such as metrics/evaluation.json"):
        if not table_lines(average([figures])):
            raise ValueError("no direction")
    return figures


def mini_dataset(
    name: Name, out: Annotated[Path, typer.Option(help="Folder to make; it must be empty or missing.")]
) -> None:
    """Write a miniature of a public benchmark, built-in people in its exact layout."""
    from csdn.synthetic.miniatures import write_miniature

    files = write_miniature(name, out)
    print(f"{out}: {files} files. Try it: csdn benchmark {name} {out} --small")


def evaluate_features(
    features: Annotated[Path, typer.Argument(help="NumPy file (.npy), floats [images, numbers].")],
    protocol: Annotated[str, typer.Option(help="cameras, sysu, sysu_official, regdb, llcm, llcm_swapped.")],
    index: Annotated[
        Path, typer.Option(help="The image of each row: `data` of this project, or a CSV file.")
    ] = Path("data"),
    mode: Annotated[str | None, typer.Option(help="SYSU-MM01: all or indoor.")] = None,
    shots: Annotated[int | None, typer.Option(help="SYSU-MM01: 1 or 10.")] = None,
    trials: Annotated[int | None, typer.Option(help="Galleries drawn; 10 if not given.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
) -> None:
    """Evaluate features of a model of your own by any protocol.

    Row n of the features is row n of the index: of the test images of data/samples.parquet in their order, or
    of a CSV file with the columns person, modality, camera and path. Features are compared by dot product.
    """
    from csdn.evaluation.external import evaluate_features as evaluate
    from csdn.evaluation.external import label_notes, read_features, read_index
    from csdn.evaluation.headline import notes, table_lines

    columns = read_index(index)
    options = {"mode": mode, "shots": shots, "trials": trials}
    options = {name: value for name, value in options.items() if value is not None}
    try:
        figures = evaluate(read_features(features), columns, protocol, **options)
    except ValueError as error:
        raise UserError(f"{features}, with the index {index}: {error}") from None
    if out is not None:
        write_json(out, figures)
    warnings = [escape_control_chars(f"WARNING: {note}") for note in label_notes(columns, protocol)]
    print(*table_lines(figures, {"features": "features"}), *notes(figures["counts"]), *warnings, sep="\n")


def import_published(
    checkpoint: Annotated[Path, typer.Argument(help="File of a state dict (.pth); no code in it is run.")],
    out: Annotated[Path, typer.Option(help="Folder to make, for csdn.load.")],
    image_size: Annotated[
        str, typer.Option(help="Height x width in pixels of its training images.")
    ] = "288x144",
) -> None:
    """Convert a published CSDN checkpoint to a folder for csdn.load; print what was used and what dropped."""
    # Imported here: torch takes seconds.
    from csdn.model import import_published as read
    from csdn.model import save

    size = _size(image_size)
    if out.exists():
        raise UserError(f"{out}: exists already; name a folder that does not exist yet")
    model, report = read(checkpoint, size)
    save(model, out, normalize="imagenet")
    print(report)
    print(f"{out}: {model.config.identities} people, images of {image_size}; load it with csdn.load")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"--image-size {text}: write height x width in pixels, such as 288x144")
    return int(height), int(width)
