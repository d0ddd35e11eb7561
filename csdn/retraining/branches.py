"""What the branches of runs say: which there are, what each came to, and what the refused ones hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from csdn.data.drops import LEDGER, Drop, Status, parse_ledger
from csdn.retraining.git import ORIGIN, contains, file_at, git, shown

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
