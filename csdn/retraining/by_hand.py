"""The retraining run without Prefect, for cron and for people: every step's lines are printed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csdn.errors import Diverged, UserError
from csdn.retraining import steps
from csdn.retraining.notify import News, notify
from csdn.retraining.retrain import Look, Outcome, conclude, look, nothing_usable, refuse_diverged, tidy


def retrain_here(workspace: Path, overrides: Mapping[str, Any], regardless: bool) -> None:
    """One look, and all that follows from it; the caller holds the workspace's lock. Raises UserError."""
    title = "retrain"
    try:
        found = look(workspace, overrides, regardless)
        title = found.title
        print(*found.notes, title, sep="\n", flush=True)
        if found.run:
            _tell(title, _carried_out(found))
    except UserError as error:
        _say(notify(News("failed", title, reasons=(str(error),))))
        raise
    tidy(workspace)


def _carried_out(found: Look) -> Outcome:
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
    return conclude(found.run)


def _tell(title: str, outcome: Outcome) -> None:
    champion = f": {outcome.version} is champion" if outcome.version else ""
    print(f"{outcome.event}{champion}", *outcome.reasons, sep="\n")
    _say(notify(News(outcome.event, title, outcome.version, outcome.reasons)))


def _say(line: str | None) -> None:
    if line:
        print(line, flush=True)
