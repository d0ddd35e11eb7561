"""Back to an older version: a commit on main that names it, and a tag; no stage runs again."""

from __future__ import annotations

import shutil
from pathlib import Path

from csdn.champion import CHAMPION, Champion, ChampionFile
from csdn.errors import UserError
from csdn.files import as_json, replace_folder
from csdn.retraining import git
from csdn.retraining.branches import ROLLBACK, as_message
from csdn.retraining.champions import fetch_champion
from csdn.retraining.lock import RUNS
from csdn.retraining.mainline import branch_of, champion_at, champion_file_at, check_clean, take, up_to_date
from csdn.retraining.tags import commit_of_version, known_tags, tags_for, versions


def rollback(workspace: str | Path, version: str | None = None, reason: str = "") -> tuple[str, list[str]]:
    """Make an older version the champion again, by default the one before; the caller holds the lock.

    Returns the version, and lines that a person should read. Its files are fetched to champion/ first: a
    champion whose weights are gone would be none. Raises UserError where nothing has been changed.
    """
    workspace = Path(workspace).resolve()
    branch = branch_of(workspace)
    check_clean(workspace, branch)
    newest = up_to_date(workspace, branch)
    file = champion_file_at(workspace, newest)
    version = version or _before(workspace, file.champion)
    older = _champion_of(workspace, version)
    fetched = workspace / RUNS / "champion"
    fetch_champion(workspace, version, fetched)
    notes = []
    if file.champion != older:
        text = as_message(f"Champion: back to {version}", older.run, ROLLBACK, reason)
        changed = ChampionFile(champion=older, start=file.start).model_dump(mode="json")
        commit = git.commit_file(workspace, newest, CHAMPION, as_json(changed), text)
        tags = tags_for(workspace, version, commit)
        git.push(workspace, {f"refs/heads/{branch}": commit} | known_tags(workspace) | tags)
        notes = take(workspace, branch, commit, tags)
    with replace_folder(workspace / "champion") as temporary:
        shutil.copytree(fetched, temporary, dirs_exist_ok=True)
    shutil.rmtree(fetched)
    return version, notes


def _before(workspace: Path, present: Champion | None) -> str:
    """The newest version that is older than the champion."""
    older = [name for name in versions(workspace) if present and int(name[1:]) < int(present.version[1:])]
    if not older:
        raise UserError(
            f"{workspace}: there is no version before {present.version if present else 'the first'}; "
            "`csdn history` lists what there is"
        )
    return older[-1]


def _champion_of(workspace: Path, version: str) -> Champion:
    """The entry of champion.json with which a version was promoted."""
    commit = commit_of_version(workspace, version)
    champion = champion_at(workspace, commit) if commit else None
    if champion is None:
        known = ", ".join(versions(workspace)) or "none yet"
        raise UserError(f"{workspace}: no version is called {version!r}; there are: {known}")
    return champion
