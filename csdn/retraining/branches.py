"""Main and the branches of runs, here and at `origin`: what Git knows of runs, decisions and promotions.

Each decision moves main (params.yaml: registry.branch): it is a commit whose message ends with the trailers
Csdn-Run and Csdn-Decision. The branch of a run has such commits for its beginning and for what its gate said.
If it is deleted, no decision is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from csdn.ingest.ledger import LEDGER, Drop, parse_ledger
from csdn.params import load_params
from csdn.retraining import dvc, git
from csdn.retraining.gate import PROMOTE, REJECT, UNDECIDED
from csdn.retraining.git import ORIGIN
from csdn.retraining.lock import RUNS
from csdn.retraining.versions import missing_tags, named_champion
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
            "Commit them, or bring them back (`git checkout FILE`; after a `dvc repro` that failed: "
            "`git checkout dvc.lock metrics`); nothing was touched"
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


# The branches of runs, and the decisions.

# Values of the trailer Csdn-Decision. On main: PROMOTE, REJECT and UNDECIDED, which end a run, and ROLLBACK.
# On a run's branch: BEGIN, then what its gate said (PASS, REJECT or UNDECIDED), and READY if main could not
# move.
BEGIN, PASS, READY, ROLLBACK = "begin", "pass", "ready", "rollback"
MEASURE = "measure"  # a run with overrides, made for its metrics; it decides nothing


def branch_name(identifier: str) -> str:
    return f"run/{identifier}"


def commit_message(
    subject: str, run: str = "", decision: str = "", body: str = "", facts: Mapping[str, str] | None = None
) -> str:
    """A commit's message; its trailers name the run, further facts about it, and the decision."""
    lines = {"Run": run, **(facts or {}), "Decision": decision}
    trailers = "\n".join(f"Csdn-{key}: {value}" for key, value in lines.items() if value)
    return "\n\n".join(part for part in (subject, body, trailers) if part)


def trailer(name: str) -> str:
    """git's format for the value of one of `commit_message`'s trailers."""
    return f"%(trailers:key=Csdn-{name},valueonly,separator=)"


def decision_of(folder: Path, revision: str) -> str:
    """The decision of a commit; empty if it has none."""
    return git.format_commits(folder, trailer("Decision"), "--no-walk", revision)[0]


@dataclass(frozen=True)
class Decided:
    """A commit with a decision.

    overrides: the run's parameters by which its method was another than main's. untried: the ids of the drops
    that main accepts in this commit and that the run did not have, because they came while it trained.
    """

    commit: str
    time: datetime
    run: str
    decision: str
    overrides: str = ""
    untried: frozenset[str] = frozenset()


def decisions(workspace: Path, commit: str, run: str = "") -> list[Decided]:
    """The decisions in the history of a commit, newest first; run: how the run's id ends.

    One git command, which reads the messages of the whole history: some milliseconds for 1,000 commits.
    """
    names = ("Run", "Decision", "Overrides", "Untried")
    form = "%x1f".join(("%H", "%ct", *map(trailer, names)))
    greps = (f"--grep=^Csdn-Run: .*{run}$", "--grep=^Csdn-Decision: ", "--all-match", "--basic-regexp")
    found = (entry.split("\x1f") for entry in git.format_commits(workspace, form, *greps, commit))
    return [
        Decided(commit, _time(time), name, said, overrides, frozenset(untried.split()))
        for commit, time, name, said, overrides, untried in found
        if name.endswith(run)
    ]


def decided(workspace: Path, main: str, run: str) -> Decided | None:
    """The decision that ended a run, in the history of main; run: how its id ends."""
    ends = (PROMOTE, REJECT, UNDECIDED)
    return next((one for one in decisions(workspace, main, run) if one.decision in ends), None)


def newest_decision(workspace: Path, main: str) -> Decided | None:
    """The newest decision in the history of main since which data is new: a promotion, a rollback, or a run
    that was left undecided. A run by another method than main's says nothing about the data.
    """
    for one in decisions(workspace, main):
        if one.decision in (PROMOTE, ROLLBACK) or (one.decision == UNDECIDED and not one.overrides):
            return one
    return None


def first_commit(workspace: Path, revision: str | None, run: str) -> str | None:
    """The commit with which a run began, in the history of a revision; None if it is not there."""
    found = decisions(workspace, revision, run) if revision else []
    return next((one.commit for one in found if one.decision == BEGIN), None)


def find_run(workspace: Path, digits: str) -> str | None:
    """The id of the run whose id ends with these digits, here or at `origin`; None if it has no branch."""
    patterns = [f"{place}/{branch_name('*-')}{digits}" for place in _PLACES]
    names = git.git(workspace, "for-each-ref", "--format=%(refname)", *patterns).splitlines()
    return names[0].rpartition("/")[2] if names else None


_PLACES = ("refs/heads", f"refs/remotes/{ORIGIN}")


def newest_tip(workspace: Path, branch: str) -> str | None:
    """The newest commit of a branch, here or at `origin` as of the last fetch; None if neither has it."""
    here, there = (git.commit_of(workspace, f"{place}/{branch}") for place in _PLACES)
    return _newer(workspace, here, there) if here and there else here or there


def _newer(workspace: Path, here: str, there: str) -> str:
    return there if git.contains(workspace, there, here) else here


def ledger_at(workspace: Path, revision: str) -> list[Drop]:
    return parse_ledger(
        git.file_at(workspace, revision, str(LEDGER)) or b"", f"{LEDGER} in commit {revision[:12]}"
    )


# The history, read from Git alone: decisions on main, then branches of runs on which main has no decision.

_OUTCOMES = {
    PROMOTE: "promoted",
    ROLLBACK: "rolled back",
    REJECT: "rejected",
    UNDECIDED: "undecided",
    PASS: "passed",
    READY: "ready",
    MEASURE: "measured",
}
_FORM = "%x1f".join(("%H", "%ct", trailer("Run"), trailer("Decision"), trailer("Figures"), "%b"))


@dataclass(frozen=True)
class Event:
    """A decision; its outcome is a value of _OUTCOMES, or "unfinished".

    "passed": the gate let the run pass, and main does not have it: a trial (csdn.retraining.blame) after
    which a better one was applied, or a run that was killed. `version` is None if the run made no version;
    `figures` are those of metrics/headline.json.
    """

    time: datetime
    outcome: str
    run: str
    version: str | None = None
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def history(workspace: str | Path) -> list[Event]:
    """All decisions, and the runs that wait or are unfinished, oldest first; nothing is fetched."""
    workspace = Path(workspace).resolve()
    branch = main_branch(workspace)
    newest = newest_tip(workspace, branch) or git.git(workspace, "rev-parse", "HEAD")
    events = list(_on_main(workspace, newest))
    known = {event.run for event in events}
    return sorted([*events, *_on_branches(workspace, newest, known)], key=lambda event: event.time)


def _on_main(workspace: Path, newest: str) -> Iterator[Event]:
    greps = ("--basic-regexp", "--grep=^Csdn-Decision: ")
    passed: dict[str, str] = {}  # run -> the gate's reasons; its commits come before that of its promotion
    for entry in git.format_commits(workspace, _FORM, "--reverse", *greps, newest):
        commit, time, run, decision, figures, body = entry.split("\x1f", 5)
        reason = _reason(body)
        if decision == PASS:
            passed[run] = reason
            continue
        if decision in (PROMOTE, ROLLBACK):
            champion = named_champion(workspace, commit)
            version, values = champion.version, champion.figures
        elif decision in (REJECT, UNDECIDED):
            version, values = None, _figures(figures, f"Csdn-Figures of commit {commit[:12]}")
        else:
            continue
        if decision == PROMOTE:
            reason = passed.get(run, reason)
        yield Event(_time(time), _OUTCOMES[decision], run, version, reason, values)


def _on_branches(workspace: Path, newest: str, known: Collection[str]) -> Iterator[Event]:
    for run, tip in _open_runs(workspace, newest).items():
        if run in known:
            continue
        time, body = git.format_commits(workspace, "%ct%x1f%b", "--no-walk", tip)[0].split("\x1f", 1)
        decision = READY if (said := decision_of(workspace, tip)) == PROMOTE else said
        outcome = _OUTCOMES.get(decision, "unfinished")
        yield Event(_time(time), outcome, run, None, _reason(body), _headline(workspace, tip))


def _open_runs(workspace: Path, newest: str) -> dict[str, str]:
    """{run's id: newest commit} of the branches of runs, here and at `origin`, that main does not contain."""
    tips: dict[str, str] = {}
    form = "--format=%(objectname) %(refname)"
    places = [f"{place}/{branch_name('')}" for place in _PLACES]
    for line in git.git(workspace, "for-each-ref", f"--no-merged={newest}", form, *places).splitlines():
        tip, _, name = line.partition(" ")
        run = name.rpartition("/")[2]
        here = tips.setdefault(run, tip)
        tips[run] = here if here == tip else _newer(workspace, here, tip)
    return tips


def _headline(workspace: Path, commit: str) -> dict[str, Any]:
    content = git.file_at(workspace, commit, "metrics/headline.json")
    return _figures(content, f"metrics/headline.json in commit {commit[:12]}")


def _figures(text: str | bytes | None, where: str) -> dict[str, Any]:
    figures = parse_json(text, where) if text else {}
    return figures if isinstance(figures, dict) else {}


def reasons_of(workspace: Path, commit: str) -> list[str]:
    """The reasons in the message of a commit with a decision."""
    return _lines(git.format_commits(workspace, "%b", "--no-walk", commit)[0])


def _reason(body: str) -> str:
    return "; ".join(_lines(body))


def _lines(body: str) -> list[str]:
    return [line for line in body.splitlines() if line and not line.startswith("Csdn-")]


def _time(seconds: str) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)
