"""The main branch (params.yaml: registry.branch), here and at `origin`; promotions and rollbacks move it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from csdn.params import load_params
from csdn.retraining.dvc import checkout
from csdn.retraining.git import (
    ORIGIN,
    changed_files,
    check_root,
    commit_of,
    contains,
    fast_forward,
    fetch,
    file_at,
    format_commits,
    has_origin,
    set_refs,
    untracked_conflicts,
    worktree_of,
)
from csdn.retraining.lock import RUNS
from csdn.retraining.tags import tags_for
from csdn.runtime.errors import UserError
from csdn.runtime.files import fsync
from csdn.training.champion import CHAMPION, Champion, ChampionFile, parse_champion

# Results of stages. If they are untracked, a promotion moves them aside.
GENERATED = ("dvc.lock", "metrics/")


def main_branch(workspace: Path) -> str:
    """The branch's name. Raises UserError, also if the workspace is no Git repository."""
    check_root(workspace)
    return load_params(workspace / "params.yaml").registry.branch


def check_clean(workspace: Path, branch: str) -> None:
    """Raises UserError naming the changed files of the working tree in which the branch is checked out."""
    place = worktree_of(workspace, branch)
    changed = changed_files(place) if place else []
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
    here = commit_of(workspace, f"refs/heads/{branch}")
    if here is not None and here != newest:
        if not contains(workspace, newest, here):
            raise UserError(_unpushed_message(workspace, branch, here, newest))
        if problems := blocking_changes(workspace, branch, newest):
            raise UserError(f"{workspace}: cannot follow {ORIGIN}/{branch}: {'; '.join(problems)}")
        fast_forward_branch(workspace, branch, newest)
    set_refs(workspace, missing_tags(workspace, newest))
    return newest


def newest_commit(workspace: Path, branch: str) -> str:
    """The branch's commit at `origin`, which is fetched; the local one if there is no `origin`."""
    fetch(workspace)
    origin = has_origin(workspace)
    commit = commit_of(workspace, f"refs/remotes/{ORIGIN}/{branch}" if origin else f"refs/heads/{branch}")
    if commit is None:
        place = f"the Git remote {ORIGIN}" if origin else str(workspace)
        raise UserError(f"{place}: no branch is called {branch} (params.yaml: registry.branch)")
    return commit


def _unpushed_message(workspace: Path, branch: str, here: str, newest: str) -> str:
    if contains(workspace, here, newest):
        advice = f"`git push {ORIGIN} {branch}`"
    else:
        advice = f"the branches have diverged: `git pull --rebase {ORIGIN} {branch}`, then `git push`"
    return f"{workspace}: branch {branch} has commits that {ORIGIN}/{branch} has not; {advice}"


def champion_at(workspace: Path, commit: str) -> Champion | None:
    """The champion in a commit. Raises UserError."""
    return champion_file_at(workspace, commit).champion


def champion_file_at(workspace: Path, commit: str) -> ChampionFile:
    """champion.json of a commit; one without a champion if the file is missing. Raises UserError."""
    content = file_at(workspace, commit, CHAMPION)
    if content is None:
        return ChampionFile(champion=None, start=None)
    return parse_champion(content, f"{CHAMPION} in commit {commit[:12]}")


def missing_tags(workspace: Path, commit: str) -> dict[str, str]:
    """{ref: tag} of the champion that a killed call has not set."""
    champion = champion_at(workspace, commit)
    if champion is None:
        return {}
    change = format_commits(workspace, "%H", "--max-count=1", commit, "--", CHAMPION)[0]
    return tags_for(workspace, champion.version, change)


def blocking_changes(workspace: Path, branch: str, commit: str) -> list[str]:
    """What blocks a fast-forward of the local branch to a commit: somebody's work; empty if nothing does."""
    here = commit_of(workspace, f"refs/heads/{branch}")
    if here is not None and not contains(workspace, commit, here):
        return [f"the local branch {branch} has commits of its own"]
    place = worktree_of(workspace, branch)
    if place is None:
        return []
    found = []
    if changed := changed_files(place):
        found.append(f"changed and not committed: {', '.join(changed)}")
    unknown = [path for path in untracked_conflicts(place, commit) if not path.startswith(GENERATED)]
    if unknown:
        found.append(f"in the way and not in Git: {', '.join(unknown)}")
    return found


def fast_forward_branch(workspace: Path, branch: str, commit: str) -> list[str]:
    """Fast-forward the local branch to a commit, with its files if it is checked out.

    Untracked files that the commit has are moved below .runs/replaced/; returns a note that says so.
    """
    place = worktree_of(workspace, branch)
    if place is None:
        set_refs(workspace, {f"refs/heads/{branch}": commit})
        return []
    aside = workspace / RUNS / "replaced" / commit[:12]
    moved = untracked_conflicts(place, commit)
    for path in moved:
        target = aside / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (place / path).replace(target)
        fsync(target.parent)
    fast_forward(place, commit)
    return [f"{', '.join(moved)}: were not in Git; they are in {aside} now"] if moved else []


def sync_local(workspace: Path, branch: str, commit: str, tags: Mapping[str, str]) -> list[str]:
    """Move the local branch, its files and the tags to a commit that was decided; returns notes for people.

    If `origin` has the commit, whatever blocks the local branch is such a note; without `origin` it is a
    UserError.
    """
    if not has_origin(workspace):
        notes = _forward(workspace, branch, commit)
        set_refs(workspace, tags)  # last: if this call is killed before it, `missing_tags` finds them
        return notes
    set_refs(workspace, tags)
    if problems := blocking_changes(workspace, branch, commit):
        return [f"the local branch {branch} stays behind: {'; '.join(problems)}"]
    try:
        return _forward(workspace, branch, commit)
    except UserError as error:
        return [f"the local branch {branch} stays behind: {error}"]


def _forward(workspace: Path, branch: str, commit: str) -> list[str]:
    here = commit_of(workspace, f"refs/heads/{branch}")
    if here is not None and contains(workspace, here, commit):
        return []
    notes = fast_forward_branch(workspace, branch, commit)
    place = worktree_of(workspace, branch)
    if place is not None:
        try:
            checkout(place)
        except UserError as error:
            notes.append(str(error))
    return notes
