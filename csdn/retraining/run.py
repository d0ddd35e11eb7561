"""A retraining, from a camera drop to a moved main: `retrain` is its order of steps.

scan            is there enough new data (csdn.retraining.scan)? Then a run begins, or an unfinished one
                continues
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
from dataclasses import replace
from pathlib import Path
from typing import Any

from csdn.data.outputs import in_words
from csdn.ingest.ledger import Drop, Status
from csdn.params import load_params
from csdn.retraining import steps as processes
from csdn.retraining.blame import find_harmful
from csdn.retraining.branches import (
    BEGIN,
    PASS,
    decision_of,
)
from csdn.retraining.gate import PROMOTE, REJECT, UNDECIDED, Decision, as_json
from csdn.retraining.handover import share
from csdn.retraining.lock import RUNS
from csdn.retraining.notify import Notification, notify
from csdn.retraining.registry import Outcome, promote, record
from csdn.retraining.scan import Scan, drops_of, scan
from csdn.retraining.workspace import GATE, Run, begin_trial
from csdn.runtime.console import log, parse_event
from csdn.runtime.documents import expected_in, read_json
from csdn.runtime.errors import Diverged, ServiceUnavailable, UserError
from csdn.runtime.files import write_json
from csdn.runtime.sanitize import escape_control_chars
from csdn.training.champion import read_champion

KEPT = 3  # working trees of runs, kept for their reports


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
    known = {drop.id for drop in drops_of(run.workspace, champion)} if champion else set()
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
