"""A retraining without Prefect, for cron and for people: the output of every step is printed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csdn.retraining import steps
from csdn.retraining.notify import Notification, notify
from csdn.retraining.run import (
    Outcome,
    apply_decision,
    nothing_usable,
    prune_worktrees,
    reject_diverged,
    scan,
)
from csdn.retraining.workspace import Run
from csdn.runtime.errors import Diverged, UserError


def retrain_local(workspace: Path, overrides: Mapping[str, Any], force: bool) -> None:
    """One scan and the run that may follow; the caller holds the workspace's lock. Raises UserError."""
    title = "retrain"
    try:
        found = scan(workspace, overrides, force)
        title = found.title
        print(*found.notes, title, sep="\n", flush=True)
        if found.run:
            _report(title, _carry_out(found.run))
    except UserError as error:
        _print(notify(Notification("failed", title, reasons=(str(error),))))
        raise
    prune_worktrees(workspace)


def _carry_out(run: Run) -> Outcome:
    """The five stages, the gate, and its decision. A run whose training diverges is rejected."""
    print(f"run {run.id}: {run.folder}", flush=True)
    first, *others = steps.STAGES
    steps.repro(first, run.folder, _print)
    if not nothing_usable(run):
        try:
            for stage in others:
                steps.repro(stage, run.folder, _print)
            steps.gate(run.folder, _print)
        except Diverged as error:
            reject_diverged(run, error)
    return apply_decision(run)


def _report(title: str, outcome: Outcome) -> None:
    champion = f": {outcome.version} is champion" if outcome.version else ""
    print(f"{outcome.event}{champion}", *outcome.reasons, sep="\n")
    _print(notify(Notification(outcome.event, title, outcome.version, outcome.reasons)))


def _print(line: str | None) -> None:
    if line:
        print(line, flush=True)
