"""The scan: which camera data is new to the champion, and whether it is enough for a run.

main's ledger and the watched places say what arrived. Data is new since the newest decision (a promotion, a
rollback, or a run that was left undecided); csdn.retraining.trigger has the rule of what is enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from csdn.data.catalog import PEOPLE_SCHEMA, read_table
from csdn.data.shards import shards_at
from csdn.ingest.forgotten import FORGOTTEN, NOBODY, Forgotten, parse_forgotten
from csdn.ingest.identities import SplitRule, parse_aliases
from csdn.ingest.ledger import SHORT, Drop, Status
from csdn.ingest.sync import sync_ledger
from csdn.params import Params, parse_params
from csdn.retraining.branches import (
    ROLLBACK,
    Decided,
    first_commit,
    ledger_at,
    main_branch,
    newest_decision,
)
from csdn.retraining.gate import UNDECIDED
from csdn.retraining.git import file_at
from csdn.retraining.trigger import Arrivals, Since, count_arrivals, people_of, should_retrain
from csdn.retraining.versions import champion_at, fetch_champion, named_champion, rolled_back, version_tag
from csdn.retraining.workspace import AlreadyDecided, Run, begin
from csdn.runtime.documents import parse_yaml
from csdn.runtime.errors import ServiceUnavailable, UserError
from csdn.training.champion import Champion


@dataclass(frozen=True)
class Scan:
    """The result of a scan: the run that has begun or continues, or None; `reason` is one line.

    `notes` are about single drops, a line each; `drift`, with `retrain.drift`, about their cameras.
    """

    run: Run | None
    new: Arrivals
    reason: str
    notes: tuple[str, ...] = ()
    drift: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """A title for the run, as in "retrain: 12 new people, 480 images"."""
        return f"retrain: {self.new if self.run else self.reason}"


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
    champion, rule = champion_at(workspace, main), _split_rule(workspace, main, params)
    seen = {drop.id for drop in drops_of(workspace, champion)} if champion else set()
    last = newest_decision(workspace, main)
    since, tried = _since(last, champion), _tried(workspace, last)
    waiting = [drop for drop in synced if drop.status == Status.ACCEPTED and drop.id not in seen]
    unseen = [drop for drop in waiting if _entry(drop) not in tried]
    known = _people_of(workspace, champion) if champion and unseen else set()
    content = file_at(workspace, main, str(FORGOTTEN))
    forgotten = parse_forgotten(content, FORGOTTEN) if content else NOBODY
    if unseen:
        known |= _listed_people([drop for drop in waiting if drop not in unseen], rule, forgotten)
    new = count_arrivals(unseen, known, rule, forgotten)
    decide = partial(should_retrain, new, since, datetime.now(UTC).date(), params.retrain)
    (enough, reason), compared = decide(), list[str]()
    if params.retrain.drift and champion and unseen and not enough:
        changed, compared = _drift(workspace, params, unseen)
        enough, reason = decide(changed)
    return synced, Scan(None, new, reason, tuple(notes), tuple(compared)), enough


def _listed_people(drops: Sequence[Drop], rule: SplitRule, forgotten: Forgotten) -> set[str]:
    """The people of drops that were packed before; a folder that is gone since stops no scan."""
    people = set[str]()
    for drop in drops:
        try:
            people |= people_of([drop], rule, forgotten)
        except ServiceUnavailable:
            raise
        except UserError:
            continue
    return people


def _since(last: Decided | None, champion: Champion | None) -> Since | None:
    """The decision since which data is new; None if there is no champion yet."""
    if champion is None:
        return None
    if last and last.decision == UNDECIDED:
        return Since(last.time.date(), f"run {last.run} was left undecided")
    if last and last.decision == ROLLBACK:
        return Since(last.time.date(), f"the rollback to {champion.version}")
    return Since(champion.date)


def _tried(workspace: Path, last: Decided | None) -> set[tuple[str, str]]:
    """The drops (`_entry`) that are no reason for a run: the next one trains on them as well.

    The gate could not decide with them since the champion was chosen, or a version that was trained on them
    is one that a rollback has left. A drop whose reason has changed since, as by `csdn accept`, is new again.
    """
    tried = {_entry(drop) for drop in _drops_left(workspace)}
    if last and last.decision == UNDECIDED:
        drops = (drop for drop in ledger_at(workspace, last.commit) if drop.id not in last.untried)
        tried |= {_entry(drop) for drop in drops if drop.status == Status.ACCEPTED}
    return tried


def _entry(drop: Drop) -> tuple[str, str]:
    return drop.id, drop.reason


def _drops_left(workspace: Path) -> list[Drop]:
    """The drops of the versions that a rollback has left, as they were then."""
    left = (named_champion(workspace, version_tag(version)) for version in rolled_back(workspace))
    return [drop for champion in left for drop in drops_of(workspace, champion)]


def after_rollback(workspace: Path, version: str) -> list[str]:
    """What the rollback to a version means for the next scans, in lines for people; none if it left none."""
    if not (versions := rolled_back(workspace)):
        return []
    champion = named_champion(workspace, version_tag(version))
    seen = {drop.id for drop in drops_of(workspace, champion)}
    left = {_entry(drop) for drop in _drops_left(workspace)}
    drops = [
        drop
        for drop in ledger_at(workspace, f"refs/heads/{main_branch(workspace)}")
        if drop.status == Status.ACCEPTED and drop.id not in seen and _entry(drop) in left
    ]
    lines = [f"{', '.join(versions)}: the same weights are not promoted again"]
    if drops:
        lines += [
            f"drops that were in their training, and not in that of {version}:",
            *(f"  {drop}" for drop in drops),
            "They stay accepted, and start no run. New data starts one that has them too; the gate decides.",
            "If one of them is to blame: `csdn reject DROP --reason ...`, commit, `csdn retrain --now`.",
        ]
    return lines


def _drift(workspace: Path, params: Params, drops: Sequence[Drop]) -> tuple[list[str], list[str]]:
    """(what has changed in the drops against the champion's images, a text for each camera; all lines).

    Images that cannot be read stop no scan: a line says why there is no comparison.
    """
    from csdn.curation.drift import Reference, drift_of
    from csdn.curation.drift_page import lines
    from csdn.search.embedder import Embedder

    folder, scaling = workspace / "champion", params.scaling
    try:
        embedder = Embedder.open(
            folder / "embedding", params.evaluation.flip_tta, scaling.device, scaling.threads
        )
        reference = Reference(folder / "data", shards_at(params, workspace / "data"), embedder)
        found = [drift_of(drop, reference, params.ingest.grey16_range) for drop in drops]
    except ServiceUnavailable:
        raise
    except UserError as error:
        return [], [f"drift: not compared: {error}"]
    changed = [
        f"{camera.view} of drop {drift.drop.id[:SHORT]}: {camera.verdict}"
        for drift in found
        for camera in drift.alarms
    ]
    return changed, [line for drift in found for line in lines(drift)]


def _absolute(places: list[str]) -> list[str]:
    for place in places:
        if "://" not in place and not Path(place).is_absolute():
            raise UserError(
                f"ingest.watch = {place!r}: a run works in a folder of its own; give an absolute path"
            )
    return places


def drops_of(workspace: Path, champion: Champion) -> list[Drop]:
    """The drops that a champion was trained on: those that its run began with.

    The commit of its version may have more, which main got before the run was promoted.
    """
    tag = version_tag(champion.version)
    begun = first_commit(workspace, tag, champion.run)
    if begun is None:
        raise UserError(
            f"{workspace}: the history of {tag} has not the beginning of run {champion.run}; "
            "`git fetch --tags --unshallow` completes a shallow clone"
        )
    return [drop for drop in ledger_at(workspace, begun) if drop.status == Status.ACCEPTED]


def _people_of(workspace: Path, champion: Champion) -> set[str]:
    """The canonical labels of the people in the champion's data."""
    folder = workspace / "champion"
    fetch_champion(workspace, champion.version, folder)
    return set(read_table(folder / "data/people.parquet", PEOPLE_SCHEMA)["person"].to_pylist())


def _split_rule(workspace: Path, main: str, params: Params) -> SplitRule:
    aliases = parse_aliases(file_at(workspace, main, params.data.aliases) or b"", params.data.aliases)
    return SplitRule(params.data.split_salt, params.data.test_percent, aliases, params.data.trial)
