"""The retraining run without Prefect, for cron and for people: every step's lines are printed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csdn.retraining import steps
from csdn.retraining.notify import Notification, notify
from csdn.retraining.run import (
    Outcome,
    Scan,
    apply_decision,
    nothing_usable,
    prune_worktrees,
    refuse_diverged,
    scan,
)
from csdn.runtime.errors import Diverged, UserError


def retrain_local(workspace: Path, overrides: Mapping[str, Any], regardless: bool) -> None:
    """One look, and all that follows from it; the caller holds the workspace's lock. Raises UserError."""
    title = "retrain"
    try:
        found = scan(workspace, overrides, regardless)
        title = found.title
        print(*found.notes, title, sep="\n", flush=True)
        if found.run:
            _tell(title, _carried_out(found))
    except UserError as error:
        _say(notify(Notification("failed", title, reasons=(str(error),))))
        raise
    prune_worktrees(workspace)


def _carried_out(found: Scan) -> Outcome:
    print(f"run {found.run.id}: {found.run.folder}", flush=True)
    first, *others = steps.STAGES
    steps.repro(first, found.run.folder, _say)
    if not nothing_usable(found.run):
        try:
            for stage in others:
                steps.repro(stage, found.run.folder, _say)
            steps.gate(found.run.folder, _say)
        except Diverged as error:
            refuse_diverged(found.run, error)
    return apply_decision(found.run)


def _tell(title: str, outcome: Outcome) -> None:
    champion = f": {outcome.version} is champion" if outcome.version else ""
    print(f"{outcome.event}{champion}", *outcome.reasons, sep="\n")
    _say(notify(Notification(outcome.event, title, outcome.version, outcome.reasons)))


def _say(line: str | None) -> None:
    if line:
        print(line, flush=True)
