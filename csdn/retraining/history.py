"""What runs have come to: read from Git alone, main's commits and the runs' branches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from csdn.documents import parse_json
from csdn.retraining.branches import MEASURE, PROMOTE, READY, REFUSE, ROLLBACK, decision_of, run_tips, trailer
from csdn.retraining.git import ORIGIN, commit_of, contains, file_at, git, has_origin, shown
from csdn.retraining.mainline import branch_of, champion_at

_OUTCOMES = {
    PROMOTE: "promoted",
    ROLLBACK: "rolled back",
    REFUSE: "refused",
    READY: "ready",
    MEASURE: "measured",
}
_FORM = f"%H%x1f%ct%x1f{trailer('Run')}%x1f{trailer('Decision')}%x1f%b"


@dataclass(frozen=True)
class Event:
    """A decision: outcome is "promoted", "rolled back", "refused", "ready", "measured" or "unfinished".

    `version` is None where no version came of it; `figures` are those of metrics/headline.json.
    """

    time: datetime
    outcome: str
    run: str
    version: str | None = None
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def history(workspace: str | Path) -> list[Event]:
    """Every promotion, rollback, refusal and run that waits, oldest first; asks no remote."""
    workspace = Path(workspace).resolve()
    newest = _newest_known(workspace, branch_of(workspace))
    events = [*_on_main(workspace, newest), *_on_branches(workspace, newest)]
    return sorted(events, key=lambda event: event.time)


def _newest_known(workspace: Path, branch: str) -> str:
    here = commit_of(workspace, f"refs/heads/{branch}")
    there = commit_of(workspace, f"refs/remotes/{ORIGIN}/{branch}") if has_origin(workspace) else None
    if here and there:
        return there if contains(workspace, there, here) else here
    return here or there or git(workspace, "rev-parse", "HEAD")


def _on_main(workspace: Path, newest: str) -> Iterator[Event]:
    decided = ("--basic-regexp", "--grep=^Csdn-Decision: ")
    for entry in shown(workspace, _FORM, "--reverse", *decided, newest):
        commit, time, run, decision, body = entry.split("\x1f", 4)
        if decision in (PROMOTE, ROLLBACK):
            champion = champion_at(workspace, commit)
            yield Event(
                _time(time), _OUTCOMES[decision], run, champion.version, _reason(body), champion.figures
            )


def _on_branches(workspace: Path, newest: str) -> Iterator[Event]:
    for run, tip in run_tips(workspace).items():
        if contains(workspace, newest, tip):
            continue
        time, body = shown(workspace, "%ct%x1f%b", "--no-walk", tip)[0].split("\x1f", 1)
        decision = READY if (said := decision_of(workspace, tip)) == PROMOTE else said
        outcome = _OUTCOMES.get(decision, "unfinished")
        yield Event(_time(time), outcome, run, None, _reason(body), _headline(workspace, tip))


def _headline(workspace: Path, commit: str) -> dict[str, Any]:
    content = file_at(workspace, commit, "metrics/headline.json")
    figures = parse_json(content, f"metrics/headline.json in commit {commit[:12]}") if content else {}
    return figures if isinstance(figures, dict) else {}


def _reason(body: str) -> str:
    lines = [line for line in body.splitlines() if line and not line.startswith("Csdn-")]
    return "; ".join(lines)


def _time(seconds: str) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)
