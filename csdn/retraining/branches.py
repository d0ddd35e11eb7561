"""Main and the branches of runs, here and at `origin`: what Git knows of runs, decisions and promotions.

Promotions and rollbacks move main (params.yaml: registry.branch). Each decision is a commit, on a run's
branch or on main, whose message ends with two trailers: Csdn-Run and Csdn-Decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from csdn.ingest.ledger import LEDGER, Drop, Status, parse_ledger
from csdn.params import load_params
from csdn.retraining import dvc, git
from csdn.retraining.git import ORIGIN
from csdn.retraining.lock import RUNS
from csdn.retraining.versions import champion_at, missing_tags
from csdn.runtime.documents import parse_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import fsync
from csdn.search.model_card import CARD

# Results of stages and commands. If they are untracked, a promotion moves them aside.
GENERATED = ("dvc.lock", "metrics/", CARD)


def main_branch(workspace: Path) -> str:
    """The branch's name. Raises UserError, also if the workspace is no Git repository."""
    git.check_root(workspace)
    return load_params(workspace / "params.yaml").registry.branch


def check_clean(workspace: Path, branch: str) -> None:
    """Raises UserError naming the changed files of the working tree in which the branch is checked out."""
    place = git.worktree_of(workspace, branch)
    changed = git.changed_files(place) if place else []
    if changed:
        raise UserError(
            f"{place}: files of branch {branch} are changed and not committed: {', '.join(changed)}. "
            "Commit them, or bring them back (`git checkout FILE`); nothing was touched"
        )


def update_main(workspace: Path, branch: str) -> str:
    """Fast-forward the local branch to that of `origin`, if there is one; returns its newest commit.

    Raises UserError if the local branch has commits of its own, RemoteUnavailable if `origin` does not
    respond.
    """
    newest = newest_commit(workspace, branch)
    here = git.commit_of(workspace, f"refs/heads/{branch}")
    if here is not None and here != newest:
        if not git.contains(workspace, newest, here):
            raise UserError(_unpushed_message(workspace, branch, here, newest))
        if problems := blocking_changes(workspace, branch, newest):
            raise UserError(f"{workspace}: cannot follow {ORIGIN}/{branch}: {'; '.join(problems)}")
        fast_forward_branch(workspace, branch, newest)
    git.set_refs(workspace, missing_tags(workspace, newest))
    return newest


def newest_commit(workspace: Path, branch: str) -> str:
    """The branch's commit at `origin`, which is fetched; the local one if there is no `origin`."""
    git.fetch(workspace)
    origin = git.has_origin(workspace)
    commit = git.commit_of(workspace, f"refs/remotes/{ORIGIN}/{branch}" if origin else f"refs/heads/{branch}")
    if commit is None:
        place = f"the Git remote {ORIGIN}" if origin else str(workspace)
        raise UserError(f"{place}: no branch is called {branch} (params.yaml: registry.branch)")
    return commit


def _unpushed_message(workspace: Path, branch: str, here: str, newest: str) -> str:
    if git.contains(workspace, here, newest):
        advice = f"`git push {ORIGIN} {branch}`"
    else:
        advice = f"the branches have diverged: `git pull --rebase {ORIGIN} {branch}`, then `git push`"
    return f"{workspace}: branch {branch} has commits that {ORIGIN}/{branch} has not; {advice}"


def blocking_changes(workspace: Path, branch: str, commit: str) -> list[str]:
    """What blocks a fast-forward of the local branch to a commit: somebody's work; empty if nothing does."""
    here = git.commit_of(workspace, f"refs/heads/{branch}")
    if here is not None and not git.contains(workspace, commit, here):
        return [f"the local branch {branch} has commits of its own"]
    place = git.worktree_of(workspace, branch)
    if place is None:
        return []
    found = []
    if changed := git.changed_files(place):
        found.append(f"changed and not committed: {', '.join(changed)}")
    unknown = [path for path in git.untracked_conflicts(place, commit) if not path.startswith(GENERATED)]
    if unknown:
        found.append(f"in the way and not in Git: {', '.join(unknown)}")
    return found


def fast_forward_branch(workspace: Path, branch: str, commit: str) -> list[str]:
    """Fast-forward the local branch to a commit, with its files if it is checked out.

    Untracked files that the commit has are moved below .runs/replaced/; returns a note that says so.
    """
    place = git.worktree_of(workspace, branch)
    if place is None:
        git.set_refs(workspace, {f"refs/heads/{branch}": commit})
        return []
    aside = workspace / RUNS / "replaced" / commit[:12]
    moved = git.untracked_conflicts(place, commit)
    for path in moved:
        target = aside / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (place / path).replace(target)
        fsync(target.parent)
    git.fast_forward(place, commit)
    return [f"{', '.join(moved)}: were not in Git; they are in {aside} now"] if moved else []


def sync_local(workspace: Path, branch: str, commit: str, tags: Mapping[str, str]) -> list[str]:
    """Move the local branch, its files and the tags to a commit that was decided; returns notes for people.

    If `origin` has the commit, whatever blocks the local branch is such a note; without `origin` it is a
    UserError.
    """
    if not git.has_origin(workspace):
        notes = _forward(workspace, branch, commit)
        git.set_refs(workspace, tags)  # last: if this call is killed before it, `missing_tags` finds them
        return notes
    git.set_refs(workspace, tags)
    if problems := blocking_changes(workspace, branch, commit):
        return [f"the local branch {branch} stays behind: {'; '.join(problems)}"]
    try:
        return _forward(workspace, branch, commit)
    except UserError as error:
        return [f"the local branch {branch} stays behind: {error}"]


def _forward(workspace: Path, branch: str, commit: str) -> list[str]:
    here = git.commit_of(workspace, f"refs/heads/{branch}")
    if here is not None and git.contains(workspace, here, commit):
        return []
    notes = fast_forward_branch(workspace, branch, commit)
    place = git.worktree_of(workspace, branch)
    if place is not None:
        try:
            dvc.checkout(place)
        except UserError as error:
            notes.append(str(error))
    return notes


# The branches of runs, and their decisions.

# Values of the trailer Csdn-Decision.
BEGIN, READY, REJECT, PROMOTE, ROLLBACK = "begin", "ready", "reject", "promote", "rollback"
MEASURE = "measure"  # a run with overrides, made for its metrics; it decides nothing


def branch_name(identifier: str) -> str:
    return f"run/{identifier}"


def commit_message(subject: str, run: str = "", decision: str = "", body: str = "") -> str:
    """A commit's message; its trailers name the run and the decision."""
    lines = {"Csdn-Run": run, "Csdn-Decision": decision}
    trailers = "\n".join(f"{key}: {value}" for key, value in lines.items() if value)
    return "\n\n".join(part for part in (subject, body, trailers) if part)


def trailer(name: str) -> str:
    """git's format for the value of one of `commit_message`'s trailers."""
    return f"%(trailers:key=Csdn-{name},valueonly,separator=)"


def decision_of(folder: Path, revision: str) -> str:
    """The decision of a commit; empty if it has none."""
    return git.format_commits(folder, trailer("Decision"), "--no-walk", revision)[0]


def first_commit(workspace: Path, identifier: str) -> str | None:
    """The commit with which a run began; None if the run was killed before it."""
    form = f"%H {trailer('Run')} {trailer('Decision')}"
    found = (line.split(" ") for line in git.format_commits(workspace, form, run_tips(workspace)[identifier]))
    return next((first for first, *said in found if said == [identifier, BEGIN]), None)


def with_held_drops(ledger: Sequence[Drop], ledgers: Sequence[Sequence[Drop]]) -> list[Drop]:
    """main's ledger, followed by the drops that the `ledgers` of rejected runs hold, each drop once.

    A drop in main's ledger stays as it is there: a person may have accepted it since.
    """
    drops = {drop.id: drop for drop in ledger}
    for drop in (drop for other in ledgers for drop in other):
        if drop.status is Status.HELD:
            drops.setdefault(drop.id, drop)
    return list(drops.values())


def rejected_ledgers(workspace: Path) -> list[list[Drop]]:
    """The ledgers of the runs that the gate rejected, oldest run first."""
    tips = sorted(run_tips(workspace).items())
    return [ledger_at(workspace, tip) for _, tip in tips if decision_of(workspace, tip) == REJECT]


def run_tips(workspace: Path) -> dict[str, str]:
    """{run's id: newest commit} of the runs' branches, local ones and those of `origin`."""
    tips: dict[str, str] = {}
    for place in ("refs/heads", f"refs/remotes/{ORIGIN}"):
        listed = git.git(workspace, "for-each-ref", "--format=%(objectname) %(refname)", f"{place}/run/")
        for line in listed.splitlines():
            tip, _, name = line.partition(" ")
            here = tips.setdefault(name.rpartition("/")[2], tip)
            if git.contains(workspace, tip, here):
                tips[name.rpartition("/")[2]] = tip
    return tips


def ledger_at(workspace: Path, revision: str) -> list[Drop]:
    return parse_ledger(
        git.file_at(workspace, revision, str(LEDGER)) or b"", f"{LEDGER} in commit {revision[:12]}"
    )


# The history, read from Git alone: decisions on main, then branches of runs that are not merged.

_OUTCOMES = {
    PROMOTE: "promoted",
    ROLLBACK: "rolled back",
    REJECT: "rejected",
    READY: "ready",
    MEASURE: "measured",
}
_FORM = f"%H%x1f%ct%x1f{trailer('Run')}%x1f{trailer('Decision')}%x1f%b"


@dataclass(frozen=True)
class Event:
    """A decision; its outcome is "promoted", "rolled back", "rejected", "ready", "measured" or "unfinished".

    `version` is None if the run made no version; `figures` are those of metrics/headline.json.
    """

    time: datetime
    outcome: str
    run: str
    version: str | None = None
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def history(workspace: str | Path) -> list[Event]:
    """All promotions, rollbacks, rejections and runs that wait, oldest first; nothing is fetched."""
    workspace = Path(workspace).resolve()
    newest = _newest_known(workspace, main_branch(workspace))
    events = [*_on_main(workspace, newest), *_on_branches(workspace, newest)]
    return sorted(events, key=lambda event: event.time)


def _newest_known(workspace: Path, branch: str) -> str:
    here = git.commit_of(workspace, f"refs/heads/{branch}")
    there = git.commit_of(workspace, f"refs/remotes/{ORIGIN}/{branch}") if git.has_origin(workspace) else None
    if here and there:
        return there if git.contains(workspace, there, here) else here
    return here or there or git.git(workspace, "rev-parse", "HEAD")


def _on_main(workspace: Path, newest: str) -> Iterator[Event]:
    decided = ("--basic-regexp", "--grep=^Csdn-Decision: ")
    for entry in git.format_commits(workspace, _FORM, "--reverse", *decided, newest):
        commit, time, run, decision, body = entry.split("\x1f", 4)
        if decision in (PROMOTE, ROLLBACK):
            champion = champion_at(workspace, commit)
            yield Event(
                _time(time), _OUTCOMES[decision], run, champion.version, _reason(body), champion.figures
            )


def _on_branches(workspace: Path, newest: str) -> Iterator[Event]:
    for run, tip in run_tips(workspace).items():
        if git.contains(workspace, newest, tip):
            continue
        time, body = git.format_commits(workspace, "%ct%x1f%b", "--no-walk", tip)[0].split("\x1f", 1)
        decision = READY if (said := decision_of(workspace, tip)) == PROMOTE else said
        outcome = _OUTCOMES.get(decision, "unfinished")
        yield Event(_time(time), outcome, run, None, _reason(body), _headline(workspace, tip))


def _headline(workspace: Path, commit: str) -> dict[str, Any]:
    content = git.file_at(workspace, commit, "metrics/headline.json")
    figures = parse_json(content, f"metrics/headline.json in commit {commit[:12]}") if content else {}
    return figures if isinstance(figures, dict) else {}


def _reason(body: str) -> str:
    lines = [line for line in body.splitlines() if line and not line.startswith("Csdn-")]
    return "; ".join(lines)


def _time(seconds: str) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)
