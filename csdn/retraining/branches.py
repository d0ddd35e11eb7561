"""What the branches of runs say: which there are, what each came to, and what the refused ones hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from csdn.ingest.ledger import LEDGER, Drop, Status, parse_ledger
from csdn.retraining.git import ORIGIN, commit_of, contains, file_at, git, has_origin, shown
from csdn.retraining.mainline import branch_of, champion_at
from csdn.runtime.documents import parse_json

# What a commit of a run, or of main, decides (`as_message`).
BEGIN, READY, REFUSE, PROMOTE, ROLLBACK = "begin", "ready", "refuse", "promote", "rollback"
MEASURE = "measure"  # nothing: the run was made for its figures


def branch_name(identifier: str) -> str:
    return f"run/{identifier}"


def as_message(subject: str, run: str = "", decision: str = "", body: str = "") -> str:
    """A commit's message; its last lines say which run it is of and what was decided."""
    lines = {"Csdn-Run": run, "Csdn-Decision": decision}
    trailers = "\n".join(f"{key}: {value}" for key, value in lines.items() if value)
    return "\n\n".join(part for part in (subject, body, trailers) if part)


def trailer(name: str) -> str:
    """What makes git print the value of one of `as_message`'s last lines."""
    return f"%(trailers:key=Csdn-{name},valueonly,separator=)"


def decision_of(folder: Path, revision: str) -> str:
    """What a commit of a run decided; empty for any other."""
    return shown(folder, trailer("Decision"), "--no-walk", revision)[0]


def first_commit(workspace: Path, identifier: str) -> str | None:
    """The commit with which a run began; None where a kill came before it."""
    form = f"%H {trailer('Run')} {trailer('Decision')}"
    found = (line.split(" ") for line in shown(workspace, form, run_tips(workspace)[identifier]))
    return next((first for first, *said in found if said == [identifier, BEGIN]), None)


def adopted(ledger: Sequence[Drop], refused: Sequence[Sequence[Drop]]) -> list[Drop]:
    """main's ledger, then what the ledgers of refused runs have held beyond it, each drop once.

    A drop that main's ledger has stays as it is there: a person may have accepted it since.
    """
    drops = {drop.id: drop for drop in ledger}
    for drop in (drop for other in refused for drop in other):
        if drop.status is Status.HELD:
            drops.setdefault(drop.id, drop)
    return list(drops.values())


def refused_ledgers(workspace: Path) -> list[list[Drop]]:
    """Ledgers of the runs that the gate refused, oldest run first."""
    tips = sorted(run_tips(workspace).items())
    return [ledger_at(workspace, tip) for _, tip in tips if decision_of(workspace, tip) == REFUSE]


def run_tips(workspace: Path) -> dict[str, str]:
    """{run's id: newest commit} of the runs' branches, here and at `origin`."""
    tips: dict[str, str] = {}
    for place in ("refs/heads", f"refs/remotes/{ORIGIN}"):
        listed = git(workspace, "for-each-ref", "--format=%(objectname) %(refname)", f"{place}/run/")
        for line in listed.splitlines():
            tip, _, name = line.partition(" ")
            here = tips.setdefault(name.rpartition("/")[2], tip)
            if contains(workspace, tip, here):
                tips[name.rpartition("/")[2]] = tip
    return tips


def ledger_at(workspace: Path, revision: str) -> list[Drop]:
    return parse_ledger(
        file_at(workspace, revision, str(LEDGER)) or b"", f"{LEDGER} in commit {revision[:12]}"
    )


# What runs have come to: read from Git alone, main's commits and the runs' branches.


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
