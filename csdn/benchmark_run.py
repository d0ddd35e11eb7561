"""One command from a benchmark's folder to its figures: preset and ledger are set, then `dvc repro` runs."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from csdn.champion import read_champion, write_champion
from csdn.data.arrivals import examine
from csdn.data.drops import LEDGER, SHORT, Drop, Status, change_ledger, read_ledger
from csdn.data.people import read_aliases
from csdn.documents import expected_in, read_json
from csdn.errors import UserError
from csdn.evaluation.average import average, shape
from csdn.evaluation.summary import table_lines
from csdn.files import write_json
from csdn.params import load_params
from csdn.presets import set_value, use
from csdn.retraining.dvc_files import DVC, environment
from csdn.safe import printable
from csdn.state import state_key

NAMES = ("sysu", "regdb", "llcm")
PARAMS = Path("params.yaml")
FIGURES = Path("metrics/evaluation.json")
TRIALS = 10


def run_benchmark(name: str, address: str, small: bool, trials: str) -> None:
    """Set params.yaml and the ledger, run the pipeline; raises UserError, also where the run fails."""
    if name not in NAMES:
        raise UserError(f"no benchmark is called {name!r}; there are: {', '.join(NAMES)}")
    wanted = parse_trials(trials)
    notes: list[str] = []
    drop, images = examine(address, name, notes.append)
    trial = load_params(PARAMS).data.trial
    print(*use(name, PARAMS, small), sep="\n")
    if name == "regdb":
        set_value(PARAMS, "data.trial", trial)  # the one whose outputs stand here, until another is trained
    weights = load_params(PARAMS).model.weights
    if not Path(weights).is_file():
        raise UserError(f"{weights} is not there: run `csdn fetch-clip`, then the same command again")
    write_champion(read_champion().model_copy(update={"start": None}))  # its people are others
    before = read_ledger()
    change_ledger(lambda drops: alone(drops, drop))
    print(f"{LEDGER}: drop {drop.id[:SHORT]} alone, {drop.address}, {images} images")
    for line in [*map(printable, notes), *left_out(before, read_ledger())]:
        print(line)
    if name == "regdb":
        _each_trial(wanted, drop)
    else:
        _repro()


def parse_trials(text: str) -> list[int]:
    """The trials that "1-10", "3" or "1,4-6" names, rising; raises UserError outside 1..10."""
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


def alone(drops: Sequence[Drop], drop: Drop) -> list[Drop]:
    """The ledger with this drop accepted and every other one rejected; places stay.

    The reason of a drop that this rejects says what it was before, and why.
    """

    def decided(other: Drop) -> Drop:
        if other.id == drop.id:
            return replace(other, address=drop.address) if other.status == Status.ACCEPTED else drop
        if other.status == Status.REJECTED:
            return other
        was = f"{other.status}: {other.reason}" if other.reason else str(other.status)
        return replace(
            other, status=Status.REJECTED, reason=f"{drop.layout} is evaluated alone; it was {was}"
        )

    known = any(other.id == drop.id for other in drops)
    return [*map(decided, drops), *([] if known else [drop])]


def left_out(before: Sequence[Drop], after: Sequence[Drop]) -> list[str]:
    """What to tell of the drops that are rejected now, and how to take them back; nothing where none are."""
    rejected = [
        new.id[:SHORT]
        for old, new in zip(before, after, strict=False)
        if new.status == Status.REJECTED != old.status
    ]
    if not rejected:
        return []
    return [
        f"Rejected for it: {', '.join(rejected)}. `csdn drops` says what each was; to undo, for each: "
        "csdn accept DROP --reason WHY"
    ]


def _each_trial(trials: Sequence[int], drop: Drop) -> None:
    """A model for each trial; their figures side by side in metrics/regdb/, and their mean.

    A trial that this data, these parameters and weights were evaluated on before is not run again.
    """
    folder = FIGURES.parent / "regdb"
    folder.mkdir(exist_ok=True, parents=True)
    kept = []
    for trial in trials:
        kept.append(folder / f"trial-{trial:02d}.json")
        key, key_file = trial_key(trial, drop), kept[-1].with_suffix(".key")
        if kept[-1].exists() and key_file.exists() and key_file.read_text() == key:
            print(f"RegDB, trial {trial}: {kept[-1]} is there already")
            continue
        print(f"RegDB, trial {trial}", flush=True)
        set_value(PARAMS, "data.trial", trial)
        _repro()
        key_file.unlink(missing_ok=True)
        shutil.copy(FIGURES, kept[-1])
        key_file.write_text(key)
    print()
    show_average(kept, folder / "average.json")


def trial_key(trial: int, drop: Drop) -> str:
    """SHA-256 of what decides a trial's figures."""
    params = load_params(PARAMS)
    settings = params.model_dump(exclude={"scaling", "report"})
    settings["data"]["trial"] = trial
    weights = hashlib.sha256(Path(params.model.weights).read_bytes()).hexdigest()
    aliases = read_aliases(params.data.aliases)
    return state_key(drop=drop.id, settings=settings, weights=weights, aliases=aliases)


def _repro() -> None:
    sys.stdout.flush()
    done = subprocess.run([*DVC, "repro"], env=environment(), check=False)
    if done.returncode:
        raise UserError(f"dvc repro failed ({done.returncode}); the same command goes on where it stopped")


def show_average(files: Sequence[Path], out: Path | None = None) -> None:
    """Print the mean of several models' figures, and write it to `out`. Raises UserError naming a file."""
    models = [_read_figures(path) for path in files]
    for path, model in zip(files, models, strict=True):
        if shape(model) != shape(models[0]):
            raise UserError(
                f"{path}: of another protocol, method or size than {files[0]}; they have no common mean"
            )
    figures = average(models)
    if out is not None:
        write_json(out, figures)
    print(*table_lines(figures), sep="\n")
    print(f"Percent, mean ± standard deviation over {len(files)} models")


def _read_figures(path: Path) -> dict[str, Any]:
    figures = read_json(path)
    with expected_in(path, "give files such as metrics/evaluation.json"):
        if not table_lines(average([figures])):
            raise ValueError("no direction")
    return figures
