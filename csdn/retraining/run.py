"""A retraining, from a camera drop to a moved main: `retrain` is its order of steps.

scan            main's ledger and the watched places -> is there enough new data? Then a run begins, or an
                unfinished one continues
ingest, train   the five stages in the run's working tree, each a process (csdn.retraining.steps)
gate            the candidate is compared with the champion
trial           if the gate rejects the run, it is repeated without some of its drops (csdn.retraining.blame)
apply_decision  main moves: to the run, or to a commit in which the run's drops are held or accepted

`csdn retrain` runs the steps here, flows/retrain.py runs each as a Prefect task.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from csdn.data.catalog import PEOPLE_SCHEMA, read_table
from csdn.data.outputs import in_words
from csdn.data.shards import shards_at
from csdn.ingest.forgotten import FORGOTTEN, NOBODY, Forgotten, parse_forgotten
from csdn.ingest.identities import SplitRule, parse_aliases
from csdn.ingest.ledger import SHORT, Drop, Status
from csdn.ingest.sync import sync_ledger
from csdn.params import Params, load_params, parse_params
from csdn.retraining import steps as processes
from csdn.retraining.blame import find_harmful
from csdn.retraining.branches import (
    BEGIN,
    PASS,
    ROLLBACK,
    Decided,
    decision_of,
    first_commit,
    ledger_at,
    main_branch,
    newest_decision,
)
from csdn.retraining.gate import PROMOTE, REJECT, UNDECIDED, Decision, as_json
from csdn.retraining.git import file_at
from csdn.retraining.handover import share
from csdn.retraining.lock import RUNS
from csdn.retraining.notify import Notification, notify
from csdn.retraining.registry import Outcome, promote, record
from csdn.retraining.trigger import Arrivals, Since, count_arrivals, people_of, should_retrain
from csdn.retraining.versions import champion_at, fetch_champion, named_champion, rolled_back, version_tag
from csdn.retraining.workspace import GATE, AlreadyDecided, Run, begin, begin_trial
from csdn.runtime.console import log, parse_event
from csdn.runtime.documents import expected_in, parse_yaml, read_json
from csdn.runtime.errors import Diverged, ServiceUnavailable, UserError
from csdn.runtime.files import write_json
from csdn.runtime.sanitize import escape_control_chars
from csdn.training.champion import Champion, read_champion

KEPT = 3  # working trees of runs, kept for their reports


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


class Steps:
    """How the steps of a retraining are run: here, with their output printed. Each raises UserError."""

    title = "retrain"  # until the scan has found something

    def scan(self, workspace: Path, overrides: Mapping[str, Any], force: bool) -> Scan:
        found = scan(workspace, overrides, force)
        self.title = found.title
        _print(*found.notes, *found.drift, found.title)
        if found.run:
            _print(f"run {found.run.id}: {found.run.folder}")
        return found

    def ingest(self, folder: Path) -> None:
        processes.repro(processes.STAGES[0], folder, _print)

    def train(self, folder: Path) -> None:
        """The stages after ingest. Raises Diverged."""
        for stage in processes.STAGES[1:]:
            processes.repro(stage, folder, _print)

    def gate(self, folder: Path) -> None:
        processes.gate(folder, _print)

    def trial(self, run: Run, left_out: Sequence[Drop]) -> Run:
        begun = trial(run, left_out)
        _print(f"run {begun.id} repeats it without:", *(f"  {drop}" for drop in left_out))
        return begun

    def apply_decision(self, run: Run, cleared: Sequence[Drop] = (), notes: Sequence[str] = ()) -> Outcome:
        outcome = apply_decision(run, cleared, notes)
        _print(outcome.event, *outcome.lines)
        return outcome

    def notify(self, notification: Notification) -> None:
        if problem := notify(notification):
            _print(problem)


def retrain(
    workspace: Path, overrides: Mapping[str, Any], steps: Steps, force: bool = False
) -> tuple[Scan, Outcome | None]:
    """One scan and the run that may follow; the caller holds the workspace's lock. Raises UserError."""
    found, outcome = steps.scan(workspace, overrides, force), None
    if found.run:
        outcome = _carry_out(found.run, steps)
        steps.notify(Notification(outcome.event, found.title, outcome.version, outcome.reasons))
    prune_worktrees(workspace)
    return found, outcome


def _carry_out(run: Run, steps: Steps) -> Outcome:
    """The stages, the gate and its decision; a rejected run is repeated to find the drops that did harm.

    If this call is killed, the next one finds what the gate has said of the run and of its trials.
    """
    if _judge(run, steps) != REJECT or run.other_method:
        return _decided(run, steps)
    suspects, trials = tuple(_suspects(run)), dict[tuple[Drop, ...], Run]()

    def passes(left_out: tuple[Drop, ...]) -> bool:
        trials[left_out] = steps.trial(run, left_out)
        return _judge_trial(trials[left_out], steps) == PROMOTE

    budget = load_params(run.folder / "params.yaml").retrain.blame_runs
    found = trials.get(find_harmful(suspects, passes, budget))
    cleared: tuple[Drop, ...] = ()
    if found is None and suspects and _vouched_for(run) and len(trials) < budget:
        if passes(suspects):
            found = trials[suspects]
        elif read_gate(trials[suspects])["decision"] == REJECT:  # there is harm without any of them
            cleared = suspects
    notes = _undecided_trials(trials.values())
    if trials and not found:
        count = f"{len(trials)} repetitions without some of the drops (retrain.blame_runs)"
        notes.append(f"{count}: none was promoted")
    if cleared:
        others = ", ".join(map(str, _vouched_for(run)))
        notes.append(f"no suspect is held, as the run is rejected without them as well; look at {others}")
    return _decided(found or run, steps, cleared, notes)


def _decided(run: Run, steps: Steps, cleared: Sequence[Drop] = (), notes: Sequence[str] = ()) -> Outcome:
    """Apply the gate's decision, and log it as an event."""
    outcome, reasons = steps.apply_decision(run, cleared, notes), read_gate(run)["reasons"]
    figures = run.folder / "metrics/headline.json"  # missing if the run has made no model
    log(
        "decision",
        run=run.id,
        outcome=outcome.event,
        version=outcome.version,
        reasons=[*reasons, *(reason for reason in outcome.reasons if reason not in reasons)],
        figures=read_json(figures) if figures.exists() else {},
    )
    return outcome


def _undecided_trials(trials: Iterable[Run]) -> list[str]:
    """Why they have shown nothing."""
    gates = {one.id: read_gate(one) for one in trials}
    return [
        f"repetition {run} is undecided: {'; '.join(gate['reasons'])}"
        for run, gate in gates.items()
        if gate["decision"] == UNDECIDED
    ]


def _judge(run: Run, steps: Steps) -> str:
    """What the gate says of a run: PROMOTE, REJECT or UNDECIDED; it is committed on the run's branch.

    Data that ingest holds and training that diverges are rejected without the gate.
    """
    if not (run.folder / GATE).exists():
        steps.ingest(run.folder)
        if bad := nothing_usable(run):
            write_decision(run, REJECT, bad)
        else:
            _train(run, steps)
    return _committed(run)


def _judge_trial(run: Run, steps: Steps) -> str:
    """`_judge` for a trial. A failure, as with too few people, shows nothing: the trial is undecided."""
    if not (run.folder / GATE).exists():
        try:
            steps.ingest(run.folder)
            _train(run, steps)
        except ServiceUnavailable:
            raise
        except UserError as error:
            write_decision(run, UNDECIDED, [f"failed: {error}"])
    return _committed(run)


def _committed(run: Run) -> str:
    """The decision in metrics/gate.json, once it is committed on the run's branch."""
    gate = read_gate(run)
    if decision_of(run.workspace, run.tip) in (BEGIN, ""):  # none: a stage was shared
        said = PASS if gate["decision"] == PROMOTE else gate["decision"]
        run.commit("the gate has decided", said, "\n".join(gate["reasons"]))
        share("gate", run.folder, _print)
    return gate["decision"]


def _train(run: Run, steps: Steps) -> None:
    try:
        steps.train(run.folder)
        steps.gate(run.folder)
    except Diverged as error:  # it would diverge again if repeated
        write_decision(run, REJECT, [str(error)])


def retrain_local(workspace: Path, overrides: Mapping[str, Any], force: bool) -> None:
    """`retrain` with its output printed; a failure is sent as a notification, and raised."""
    steps = Steps()
    try:
        retrain(workspace, overrides, steps, force)
    except UserError as error:
        steps.notify(Notification("failed", steps.title, reasons=(str(error),)))
        raise


def _print(*lines: str) -> None:
    """Text to standard output; a stage's JSON events (CSDN_LOG=json) to standard error."""
    for line in lines:
        stream = sys.stderr if parse_event(line) else sys.stdout
        print(escape_control_chars(line, keep="\n"), file=stream, flush=True)


# The scan: what arrived, and whether it is enough.


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
    seen = {drop.id for drop in _drops_of(workspace, champion)} if champion else set()
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
    return [drop for champion in left for drop in _drops_of(workspace, champion)]


def after_rollback(workspace: Path) -> list[str]:
    """What a rollback means for the next scans, in lines for people; none if it has left no version."""
    if not (versions := rolled_back(workspace)):
        return []
    main = f"refs/heads/{main_branch(workspace)}"
    champion = named_champion(workspace, main)
    seen = {drop.id for drop in _drops_of(workspace, champion)}
    left = {_entry(drop) for drop in _drops_left(workspace)}
    drops = [
        drop
        for drop in ledger_at(workspace, main)
        if drop.status == Status.ACCEPTED and drop.id not in seen and _entry(drop) in left
    ]
    lines = [f"{', '.join(versions)}: the same weights are not promoted again"]
    if drops:
        lines += [
            f"they were trained on these drops, and {champion.version} was not:",
            *(f"  {drop}" for drop in drops),
            "The drops stay accepted, and start no run. The next new data starts one that has them too, and "
            "the gate decides. If one of them is to blame: `csdn reject DROP --reason ...`, and commit; "
            "`csdn retrain --now` trains without it at once.",
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


def _drops_of(workspace: Path, champion: Champion) -> list[Drop]:
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


# The decision on a run.


def nothing_usable(run: Run) -> list[str]:
    """Why the run need not train: ingest held every drop that came with it. Empty if it held not all.

    Called once ingest has run. Raises UserError.
    """
    held = _held_by_ingest(run)
    if not run.new_drops or not all(drop.id in held for drop in run.new_drops):
        return []
    bad = [(drop, held[drop.id]) for drop in run.new_drops]
    return [
        escape_control_chars(
            f"{drop}: {one['bad']} of {one['images']} images are bad: "
            f"{in_words(one['reasons'], one['examples'])}"
        )
        for drop, one in bad
    ]


def _held_by_ingest(run: Run) -> dict[str, dict[str, Any]]:
    """metrics/ingest.json's entries of the drops that ingest held, by their ids."""
    metrics = _metrics(run, "ingest", "dvc repro ingest", "drops")
    with expected_in(f"metrics/ingest.json of run {run.id}", "`dvc repro ingest` makes it"):
        return {one["id"]: one for one in metrics["drops"]["held"]}


def write_decision(run: Run, decision: str, reasons: Sequence[str]) -> None:
    """Write a decision to metrics/gate.json without a comparison: the run has made no model.

    The metrics that it began with are the champion's, and are removed.
    """
    champion = read_champion(run.folder).champion
    for name in ("headline", "evaluation"):
        (run.folder / f"metrics/{name}.json").unlink(missing_ok=True)
    made = Decision(decision, list(reasons))
    write_json(run.folder / GATE, as_json(made, champion.version if champion else None, []))


def apply_decision(run: Run, cleared: Collection[Drop] = (), notes: Sequence[str] = ()) -> Outcome:
    """Apply metrics/gate.json: main moves to the run, or its drops are held, or accepted if it is undecided.

    cleared: suspects that are not held. notes: further lines for people. A call that failed can be repeated.
    Raises UserError; ServiceUnavailable if a remote does not respond.
    """
    gate = read_gate(run)
    decision, reasons = gate["decision"], list(gate["reasons"])
    if decision == PROMOTE:
        outcome, hold = promote(run), list[Drop]()
    else:
        hold = _to_hold(run, cleared) if decision == REJECT else []
        if run.other_method:
            reasons.append(f"{', '.join(run.other_method)}: not main's; the drops stay as they are")
        outcome = record(run, decision, reasons, hold)
    held = [f"held: {drop}: {drop.reason}" for drop in run.held]
    if outcome.event == "rejected":  # another clone may have decided otherwise
        held += [f"held: {drop}" for drop in hold]
    return replace(outcome, reasons=(*outcome.reasons, *held, *notes))


def _to_hold(run: Run, cleared: Collection[Drop]) -> list[Drop]:
    """The drops that the rejection of a run holds: the new ones, and all suspects that are not cleared.

    A run by another method than main's says nothing about the data, and holds none.
    """
    if run.other_method:
        return []
    hold = {*_suspects(run), *run.new_drops}.difference(cleared)
    return [drop for drop in run.drops if drop in hold]


def read_gate(run: Run) -> dict[str, Any]:
    """`decision` and `reasons` of metrics/gate.json. Raises UserError."""
    return _metrics(run, "gate", "csdn gate", "decision", "reasons")


# The drops that did harm.


def _suspects(run: Run) -> list[Drop]:
    """The drops that may have done harm to a run, in the ledger's order."""
    return [drop for drop in _unproven(run) if not drop.reason]


def _vouched_for(run: Run) -> list[Drop]:
    """The drops that would be suspects if no person had accepted them, with a reason."""
    return [drop for drop in _unproven(run) if drop.reason]


def _unproven(run: Run) -> list[Drop]:
    """The drops that a run was trained on and its champion was not; none if it has not trained.

    Without a champion, all of them.
    """
    if nothing_usable(run):
        return []
    champion = read_champion(run.folder).champion
    known = {drop.id for drop in _drops_of(run.workspace, champion)} if champion else set()
    unused = known | set(_held_by_ingest(run))
    return [drop for drop in run.drops if drop.status == Status.ACCEPTED and drop.id not in unused]


def trial(run: Run, left_out: Sequence[Drop]) -> Run:
    """Begin or continue a trial: the rejected run again, with these drops held. Raises UserError."""
    others = len(left_out) - 1
    without = f"it and {others} other{'s' if others > 1 else ''}" if others else "it"
    reasons = "; ".join(read_gate(run)["reasons"])
    reason = f"gate of run {run.id}: {reasons}; promoted without {without}"
    return begin_trial(run, left_out, reason)


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
