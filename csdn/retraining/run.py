"""A retraining, from a camera drop to a moved main: scan the data, begin a run, apply the gate's decision.

scan            main's ledger and the watched places -> is there enough new data? Then a run begins or
continues (steps)         the five stages and the gate, in the run's working tree (csdn.retraining.steps)
apply_decision  main moves to the run, or the drops that came with it are held

cron (csdn.retraining.local) and Prefect (flows/retrain.py) call the same functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from csdn.data.catalog import PEOPLE_SCHEMA, read_table
from csdn.ingest.identities import SplitRule, parse_aliases
from csdn.ingest.ledger import LEDGER, Drop, Status, parse_ledger
from csdn.ingest.sync import sync_ledger
from csdn.params import Params, parse_params
from csdn.retraining.branches import champion_at, main_branch
from csdn.retraining.gate import PROMOTE, REJECT, Decision, as_json
from csdn.retraining.git import file_at
from csdn.retraining.lock import RUNS
from csdn.retraining.registry import promote, reject
from csdn.retraining.trigger import Arrivals, count_arrivals, should_retrain
from csdn.retraining.versions import fetch_champion, version_tag
from csdn.retraining.workspace import AlreadyDecided, Run, begin
from csdn.runtime.documents import expected_in, parse_yaml, read_json
from csdn.runtime.errors import Diverged, UserError
from csdn.runtime.files import write_json
from csdn.runtime.sanitize import in_words
from csdn.training.champion import Champion, read_champion

KEPT = 3  # working trees of runs, kept for their reports


@dataclass(frozen=True)
class Scan:
    """The result of a scan: the run that has begun or continues, or None; `reason` is one line.

    `notes` are about single drops, a line each.
    """

    run: Run | None
    new: Arrivals
    reason: str
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """A title for the run, as in "retrain: 12 new people, 480 images"."""
        return f"retrain: {self.new if self.run else self.reason}"


@dataclass(frozen=True)
class Outcome:
    """The result of a run; "ready": the gate let it pass, but main could not move. `reasons`: for people."""

    event: Literal["promoted", "ready", "rejected"]
    version: str | None
    reasons: tuple[str, ...]


class _NothingToDo(Exception):
    """There is no reason to begin a run."""


def scan(workspace: str | Path, overrides: Mapping[str, Any] | None = None, force: bool = False) -> Scan:
    """Scan for new camera data; if there is enough, begin a run or continue it.

    The caller holds the workspace's lock. overrides: of params.yaml, for this run. force: begin a run even if
    there is not enough. Raises UserError; ServiceUnavailable if a store or remote does not respond.
    """
    workspace = Path(workspace).resolve()
    found: list[Scan] = []

    def synced_ledger(drops: list[Drop]) -> list[Drop]:
        synced, result, enough = _new_data(workspace, drops)
        found.append(result)
        if not (enough or force):
            raise _NothingToDo
        return synced

    try:
        run = begin(workspace, synced_ledger, overrides)
    except _NothingToDo:
        return found[0]
    except AlreadyDecided as decided:
        return replace(found[0], reason=str(decided))
    return replace(found[0], run=run)


def _new_data(workspace: Path, drops: list[Drop]) -> tuple[list[Drop], Scan, bool]:
    """(the ledger with the drops that arrived, the data new to the champion, whether it is enough)."""
    main = f"refs/heads/{main_branch(workspace)}"
    source = f"params.yaml of {main}"
    params = parse_params(parse_yaml(file_at(workspace, main, "params.yaml") or b"", source), source)
    synced, notes = sync_ledger(drops, _absolute(params.ingest.watch), workspace / "data")
    champion = champion_at(workspace, main)
    seen = _drops_of(workspace, champion) if champion else set()
    unseen = [drop for drop in synced if drop.status == Status.ACCEPTED and drop.id not in seen]
    known = _people_of(workspace, champion) if champion and unseen else set()
    new = count_arrivals(unseen, known, _split_rule(workspace, main, params))
    today = datetime.now(UTC).date()
    enough, reason = should_retrain(new, champion and champion.date, today, params.retrain)
    return synced, Scan(None, new, reason, tuple(notes)), enough


def _absolute(places: list[str]) -> list[str]:
    for place in places:
        if "://" not in place and not Path(place).is_absolute():
            raise UserError(
                f"ingest.watch = {place!r}: a run works in a folder of its own; give an absolute path"
            )
    return places


def _drops_of(workspace: Path, champion: Champion) -> set[str]:
    """The ids of the drops that the champion was trained on."""
    tag = version_tag(champion.version)
    drops = parse_ledger(file_at(workspace, tag, str(LEDGER)) or b"", f"{LEDGER} of {tag}")
    return {drop.id for drop in drops if drop.status == Status.ACCEPTED}


def _people_of(workspace: Path, champion: Champion) -> set[str]:
    """The canonical labels of the people in the champion's data."""
    folder = workspace / "champion"
    fetch_champion(workspace, champion.version, folder)
    return set(read_table(folder / "data/people.parquet", PEOPLE_SCHEMA)["person"].to_pylist())


def _split_rule(workspace: Path, main: str, params: Params) -> SplitRule:
    aliases = parse_aliases(file_at(workspace, main, params.data.aliases) or b"", params.data.aliases)
    return SplitRule(params.data.split_salt, params.data.test_percent, aliases, params.data.trial)


def nothing_usable(run: Run) -> list[str]:
    """Why the run need not train: ingest held every drop that came with it. Empty if it held not all.

    Called once ingest has run. Raises UserError.
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


def reject_diverged(run: Run, error: Diverged) -> None:
    """Write a rejection for `apply_decision`: training has diverged, and would diverge again if repeated."""
    champion = read_champion(run.folder).champion
    _remove_metrics(run)
    decision = Decision(REJECT, [str(error)])
    write_json(run.folder / "metrics/gate.json", as_json(decision, champion and champion.version, []))


def _remove_metrics(run: Run) -> None:
    """Remove the metrics that the run began with: they are the champion's, and this run has made no model."""
    for name in ("headline", "evaluation"):
        (run.folder / f"metrics/{name}.json").unlink(missing_ok=True)


def apply_decision(run: Run) -> Outcome:
    """Apply the gate's decision: main moves to the run, or the drops that came with it are held.

    A call that failed can be repeated. Raises UserError; ServiceUnavailable if a remote does not respond.
    """
    if bad := nothing_usable(run):
        _remove_metrics(run)
        return _rejected(run, bad)
    gate = _metrics(run, "gate", "csdn gate", "decision", "reasons")
    if gate["decision"] != PROMOTE:
        return _rejected(run, gate["reasons"])
    done = promote(run)
    return Outcome(done.decision, done.version, tuple(filter(None, (done.reason, *done.notes))))


def _rejected(run: Run, reasons: Sequence[str]) -> Outcome:
    held = reject(run, reasons)
    return Outcome("rejected", None, (*reasons, *(f"held: {drop}" for drop in held)))


def _metrics(run: Run, name: str, command: str, *keys: str) -> dict[str, Any]:
    path, advice = run.folder / "metrics" / f"{name}.json", f"`{command}` in {run.folder} makes it"
    values = read_json(path, advice)
    with expected_in(path, advice):
        return {key: values[key] for key in keys}


def prune_worktrees(workspace: str | Path) -> None:
    """Remove the working trees of all runs but the newest; their branches and outputs stay."""
    folders = [path for path in (Path(workspace) / RUNS).glob("*-*") if (path / ".git").exists()]
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        with suppress(OSError):  # the next run tries again
            Run(folder.name, Path(workspace).resolve(), "").remove_worktree()
