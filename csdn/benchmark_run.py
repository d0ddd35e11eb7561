"""One command from a benchmark's folder to its figures: preset and ledger are set, then `dvc repro` runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from csdn.data.arrivals import examine
from csdn.data.drops import LEDGER, SHORT, Drop, Status, read_ledger, write_ledger
from csdn.errors import UserError
from csdn.evaluation.average import average
from csdn.evaluation.summary import table_lines
from csdn.files import write_json
from csdn.params import load_params
from csdn.presets import set_value, use
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
    drop, images = examine(address, name)
    trial = load_params(PARAMS).data.trial
    print(*use(name, PARAMS, small), sep="\n")
    if name == "regdb":
        set_value(PARAMS, "data.trial", trial)  # the one whose outputs stand here, until another is trained
    weights = load_params(PARAMS).model.weights
    if not Path(weights).is_file():
        raise UserError(f"{weights} is not there: run `csdn fetch-clip`, then the same command again")
    write_ledger(alone(read_ledger(), drop))
    print(f"{LEDGER}: drop {drop.id[:SHORT]} alone, {address}, {images} images")
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
    """The ledger with this drop accepted and every other one rejected; places and earlier reasons stay."""

    def decided(other: Drop) -> Drop:
        if other.id == drop.id:
            return replace(other, address=drop.address) if other.status == Status.ACCEPTED else drop
        if other.status == Status.REJECTED:
            return other
        return replace(other, status=Status.REJECTED, reason=f"{drop.layout} is evaluated alone")

    known = any(other.id == drop.id for other in drops)
    return [*map(decided, drops), *([] if known else [drop])]


def _each_trial(trials: Sequence[int], drop: Drop) -> None:
    """A model for each trial; their figures side by side in metrics/regdb/, and their mean.

    A trial that this data, these parameters and weights were evaluated on before is not run again.
    """
    folder = FIGURES.parent / "regdb"
    folder.mkdir(exist_ok=True, parents=True)
    kept = []
    for trial in trials:
        kept.append(folder / f"trial-{trial:02d}.json")
        key, key_file = _key(trial, drop), kept[-1].with_suffix(".key")
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


def _key(trial: int, drop: Drop) -> str:
    """SHA-256 of what decides a trial's figures."""
    params = load_params(PARAMS)
    settings = params.model_dump(exclude={"scaling", "report"})
    settings["data"]["trial"] = trial
    weights = hashlib.sha256(Path(params.model.weights).read_bytes()).hexdigest()
    return state_key(drop=drop.id, settings=settings, weights=weights)


def _repro() -> None:
    sys.stdout.flush()
    programs = Path(sys.executable).parent  # dvc.yaml says `python`
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-m", "dvc", "repro"], env=environment, check=False)
    if done.returncode:
        raise UserError(f"dvc repro failed ({done.returncode}); the same command goes on where it stopped")


def show_average(files: Sequence[Path], out: Path | None = None) -> None:
    """Print the mean of several models' figures, and write it to `out`. Raises UserError."""
    try:
        figures = average([_read_figures(path) for path in files])
    except ValueError as error:
        raise UserError(str(error)) from None
    if out is not None:
        write_json(out, figures)
    print(*table_lines(figures), sep="\n")
    print(f"Percent, mean ± standard deviation over {len(files)} models")


def _read_figures(path: Path) -> dict[str, Any]:
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        _ = figures["counts"], figures["trained"]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} does not hold what metrics/evaluation.json holds") from None
    return figures
