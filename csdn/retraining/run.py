"""A look at the camera data, and the retraining that may follow: the steps, for cron and for Prefect alike.

look      main's ledger and the landing places -> is it enough? then a run begins, or goes on
(steps)   the five stages and the gate, in the run's working tree (csdn.retraining.steps)
conclude  the gate's decision is carried out: main moves, or the drops that came are held
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from csdn.data.catalog import PEOPLE_SCHEMA, read_table
from csdn.ingest.identities import SplitRule, parse_aliases
from csdn.ingest.ledger import LEDGER, Drop, Status, parse_ledger
from csdn.ingest.sync import sync_ledger
from csdn.params import Params, parse_params
from csdn.retraining.champions import fetch_champion
from csdn.retraining.gate import KEEP, Decision, as_json
from csdn.retraining.git import file_at
from csdn.retraining.lock import RUNS
from csdn.retraining.mainline import branch_of, champion_at
from csdn.retraining.registry import promote, refuse
from csdn.retraining.tags import version_tag
from csdn.retraining.trigger import Arrivals, arrivals, decide
from csdn.retraining.workspace import AlreadyDecided, Run, begin
from csdn.runtime.documents import expected_in, parse_yaml, read_json
from csdn.runtime.errors import Diverged, UserError
from csdn.runtime.files import write_json
from csdn.runtime.sanitize import in_words
from csdn.training.champion import Champion, read_champion

KEPT = 3  # working trees of runs that stay, for their reports


@dataclass(frozen=True)
class Scan:
    """What a look at the data came to: `run` has begun, or is None; `why` says it in a line.

    `notes` are about single drops, a line each.
    """

    run: Run | None
    new: Arrivals
    why: str
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """A name for the run, as in "retrain: 12 new people, 480 images"."""
        return f"retrain: {self.new if self.run else self.why}"


@dataclass(frozen=True)
class Outcome:
    """What became of a run: "ready" was let pass, but main could not move; `reasons` are for people."""

    event: Literal["promoted", "ready", "refused"]
    version: str | None
    reasons: tuple[str, ...]


class _NotNow(Exception):
    """There is no reason to begin a run."""


def scan(workspace: str | Path, overrides: Mapping[str, Any] | None = None, regardless: bool = False) -> Scan:
    """Look for new camera data, and begin a run where there is enough, or go on with it.

    The caller holds the workspace's lock. overrides: of params.yaml, for this run. regardless: of what is
    enough. Raises UserError, Away where something outside does not answer.
    """
    workspace = Path(workspace).resolve()
    seen: list[Scan] = []

    def change(drops: list[Drop]) -> list[Drop]:
        now, found, enough = _what_is_there(workspace, drops)
        seen.append(found)
        if not (enough or regardless):
            raise _NotNow
        return now

    try:
        return Scan(begin(workspace, change, overrides), seen[0].new, seen[0].why, seen[0].notes)
    except _NotNow:
        return seen[0]
    except AlreadyDecided as decided:
        return Scan(None, seen[0].new, str(decided), seen[0].notes)


def _what_is_there(workspace: Path, drops: list[Drop]) -> tuple[list[Drop], Scan, bool]:
    """(main's ledger with what arrived, what the champion has not seen of it, whether that is enough)."""
    main = f"refs/heads/{branch_of(workspace)}"
    params = _params_at(workspace, main)
    now, notes = sync_ledger(drops, _absolute(params.ingest.watch), workspace / "data")
    champion = champion_at(workspace, main)
    seen = _drops_of(workspace, champion) if champion else set()
    waiting = [drop for drop in now if drop.status == Status.ACCEPTED and drop.id not in seen]
    known = _people_of(workspace, champion) if champion and waiting else set()
    new = arrivals(waiting, known, _identity(workspace, main, params))
    decision = decide(new, champion and champion.date, datetime.now(UTC).date(), params.retrain)
    return now, Scan(None, new, decision.why, tuple(notes)), decision.retrain


def _params_at(workspace: Path, main: str) -> Params:
    source = f"params.yaml of {main}"
    return parse_params(parse_yaml(file_at(workspace, main, "params.yaml") or b"", source), source)


def _absolute(places: list[str]) -> list[str]:
    for place in places:
        if "://" not in place and not Path(place).is_absolute():
            raise UserError(
                f"ingest.watch = {place!r}: a run works in a folder of its own; give the place's whole path"
            )
    return places


def _drops_of(workspace: Path, champion: Champion) -> set[str]:
    """Ids of the drops that the champion was trained on."""
    tag = version_tag(champion.version)
    drops = parse_ledger(file_at(workspace, tag, str(LEDGER)) or b"", f"{LEDGER} of {tag}")
    return {drop.id for drop in drops if drop.status == Status.ACCEPTED}


def _people_of(workspace: Path, champion: Champion) -> set[str]:
    """Canonical labels of the people in the champion's data."""
    folder = workspace / "champion"
    fetch_champion(workspace, champion.version, folder)
    return set(read_table(folder / "data/people.parquet", PEOPLE_SCHEMA)["person"].to_pylist())


def _identity(workspace: Path, main: str, params: Params) -> SplitRule:
    aliases = parse_aliases(file_at(workspace, main, params.data.aliases) or b"", params.data.aliases)
    return SplitRule(params.data.split_salt, params.data.test_percent, aliases, params.data.trial)


def nothing_usable(run: Run) -> list[str]:
    """Why the run need not train: ingest held every drop that came with it; empty: go on.

    Asked once ingest has run. Raises UserError.
    """
    metrics = _metrics(run, "ingest", "dvc repro ingest", "drops")
    with expected_in(f"metrics/ingest.json of run {run.id}", "`dvc repro ingest` makes it"):
        held = {one["id"]: one for one in metrics["drops"]["held"]}
    if not run.new_drops or not all(drop.id in held for drop in run.new_drops):
        return []
    bad = [(drop, held[drop.id]) for drop in run.new_drops]
    return [
        f"{drop}: {one['bad']} of {one['images']} images are bad: {in_words(one['reasons'], one['examples'])}"
        for drop, one in bad
    ]


def refuse_diverged(run: Run, error: Diverged) -> None:
    """Have the run refused by `conclude`, since its training diverged: another night's would do so again."""
    champion = read_champion(run.folder).champion
    _drop_figures(run)
    decision = Decision(KEEP, [str(error)])
    write_json(run.folder / "metrics/gate.json", as_json(decision, champion and champion.version, []))


def _drop_figures(run: Run) -> None:
    """Remove those of the model that the run began with: this run has made none to compare with it."""
    for name in ("headline", "evaluation"):
        (run.folder / f"metrics/{name}.json").unlink(missing_ok=True)


def apply_decision(run: Run) -> Outcome:
    """Carry out what the gate decided: main moves to the run, or the drops that came with it are held.

    Called again after a failure, it goes on. Raises UserError, Away where a remote does not answer.
    """
    if bad := nothing_usable(run):
        _drop_figures(run)
        return _refused(run, bad)
    gate = _metrics(run, "gate", "csdn gate", "decision", "reasons")
    if gate["decision"] != "promote":
        return _refused(run, gate["reasons"])
    done = promote(run)
    return Outcome(done.decision, done.version, tuple(filter(None, (done.reason, *done.notes))))


def _refused(run: Run, reasons: Sequence[str]) -> Outcome:
    held = refuse(run, reasons)
    return Outcome("refused", None, (*reasons, *(f"held: {drop}" for drop in held)))


def _metrics(run: Run, name: str, command: str, *keys: str) -> dict[str, Any]:
    path, advice = run.folder / "metrics" / f"{name}.json", f"`{command}` in {run.folder} makes it"
    values = read_json(path, advice)
    with expected_in(path, advice):
        return {key: values[key] for key in keys}


def prune_worktrees(workspace: str | Path) -> None:
    """Remove the working trees of all runs but the newest; their branches and outputs stay."""
    folders = [path for path in (Path(workspace) / RUNS).glob("*-*") if (path / ".git").exists()]
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        with suppress(OSError):  # what stays goes with the next run's
            Run(folder.name, Path(workspace).resolve(), "").forget()
