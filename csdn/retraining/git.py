"""Git as a process: what it answers, or as a UserError why it could not.

Hooks of the clone do not run here: they are made for a person's commits, and some check data out.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from csdn.errors import Away, UserError

ORIGIN = "origin"
# What makes Git look at another repository than that of the folder, as a hook that calls us would.
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")
_NOBODY = ("-c", "user.name=csdn", "-c", "user.email=csdn@localhost")


class RemoteError(Away):
    """A remote did not answer. The same call may work later."""


class Refused(UserError):
    """The Git remote refused a push; nothing of it is there."""


def answer(
    folder: Path, *arguments: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run git in `folder`; its exit code is the caller's business."""
    inherited = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    # Nobody is there to type a password, and messages are looked at.
    environment = inherited | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"} | dict(env or {})
    command = ["git", "-c", f"core.hooksPath={os.devnull}", *arguments]
    given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False, **given)


def git(
    folder: Path, *arguments: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None
) -> str:
    """What git prints, without the line's end. Raises UserError with its own words."""
    done = answer(folder, *arguments, stdin=stdin, env=env)
    if done.returncode:
        raise UserError(f"{folder}: git {_verb(arguments)} failed:\n{words(done.stderr)}")
    return done.stdout.decode(errors="replace").rstrip("\n")


def words(stderr: bytes) -> str:
    """What a program wrote, with no password of an address in it."""
    return re.sub(r"://[^/@\s]+@", "://***@", stderr.decode(errors="replace").strip())


def _verb(arguments: Sequence[str]) -> str:
    position = 0
    while arguments[position] == "-c":
        position += 2
    return arguments[position]


def check_root(folder: Path) -> None:
    """Raises UserError where `folder` is not the root of a Git working tree with a commit."""
    done = answer(folder, "rev-parse", "--show-toplevel")
    if done.returncode or not Path(done.stdout.decode().strip()).samefile(folder):
        raise UserError(
            f"{folder}: not the root of a Git repository; the registry of models is one: "
            "clone the project with Git, and name the clone's folder"
        )
    if commit_of(folder, "HEAD") is None:
        raise UserError(f"{folder}: this Git repository has no commit yet; make the first one")


def commit_of(folder: Path, revision: str) -> str | None:
    """The commit's 40 digits, or None where there is no such revision."""
    done = answer(folder, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    return done.stdout.decode().strip() or None


def contains(folder: Path, commit: str, older: str) -> bool:
    """Whether `older` is `commit` or among its ancestors."""
    return answer(folder, "merge-base", "--is-ancestor", older, commit).returncode == 0


def file_at(folder: Path, commit: str, path: str) -> bytes | None:
    """A file's content in a commit; None where it is not there."""
    done = answer(folder, "cat-file", "blob", f"{commit}:{path}")
    return None if done.returncode else done.stdout


def changed_files(folder: Path) -> list[str]:
    """Tracked files that differ from the last commit, staged or not."""
    lines = git(folder, "status", "--porcelain", "-z", "--untracked-files=no", "--no-renames").split("\0")
    return sorted(line[3:] for line in lines if line)


def untracked_in_the_way(folder: Path, commit: str) -> list[str]:
    """Files of the folder that Git does not know, where the commit has some of its own."""
    theirs = git(folder, "ls-tree", "-r", "-z", "--name-only", commit).split("\0")
    known = set(git(folder, "ls-files", "-z").split("\0"))
    return sorted(path for path in theirs if path and path not in known and (folder / path).exists())


def folder_of(workspace: Path, branch: str) -> Path | None:
    """The working tree in which a branch is checked out; None where it is in none."""
    place = None
    for line in git(workspace, "worktree", "list", "--porcelain").splitlines():
        if line.startswith("worktree "):
            place = Path(line.removeprefix("worktree "))
        elif line == f"branch refs/heads/{branch}":
            return place
    return None


def has_origin(folder: Path) -> bool:
    return ORIGIN in git(folder, "remote").split()


def fetch(folder: Path) -> None:
    """Bring branches and the registry's tags of `origin`, if there is one; there the tags' truth is."""
    if not has_origin(folder):
        return
    tags = [f"+refs/tags/csdn{mark}*:refs/tags/csdn{mark}*" for mark in "@#"]
    branches = f"+refs/heads/*:refs/remotes/{ORIGIN}/*"
    done = answer(folder, "fetch", "--quiet", "--no-tags", ORIGIN, branches, *tags)
    if done.returncode:
        raise RemoteError(f"{folder}: the Git remote {ORIGIN} did not answer:\n{words(done.stderr)}")


def push(folder: Path, updates: Mapping[str, str]) -> None:
    """Move refs of `origin`, if there is one: {ref: object}; all of them or none.

    Raises Refused where it says no, RemoteError where it does not answer.
    """
    if not has_origin(folder):
        return
    pairs = [f"{value}:{ref}" for ref, value in updates.items()]
    done = answer(folder, "push", "--atomic", "--porcelain", ORIGIN, *pairs)
    if not done.returncode:
        return
    refusals = [line.split("\t") for line in words(done.stdout).splitlines() if line.startswith("!")]
    if refusals:
        refs = [f"{pair.rpartition(':')[2]} {why}" for _, pair, why in refusals]
        said = [line.rstrip() for line in words(done.stderr).splitlines() if line.startswith("remote:")]
        raise Refused("\n".join([f"{folder}: the Git remote {ORIGIN} refused:", *refs, *said]))
    raise RemoteError(f"{folder}: the Git remote {ORIGIN} did not answer:\n{words(done.stderr)}")


def identity(folder: Path) -> tuple[str, ...]:
    """Options that name a committer where the user has named none."""
    named = [
        f"GIT_{role}_{what}" in os.environ for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    ]
    set_up = [not answer(folder, "config", f"user.{what}").returncode for what in ("name", "email")]
    return () if all(named) or all(set_up) else _NOBODY


def stage_files(folder: Path, paths: Sequence[str]) -> None:
    """Have those of `paths` that are there, ignored ones too, in the next commit."""
    there = [path for path in paths if (folder / path).exists()]
    if there:
        git(folder, "add", "--force", "--", *there)


def commit(folder: Path, message: str) -> str:
    """Commit what is staged, be it nothing; returns the new commit."""
    git(folder, *identity(folder), "commit", "--quiet", "--allow-empty", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def commit_file(folder: Path, parent: str, path: str, content: bytes, message: str) -> str:
    """A commit on `parent` with one file replaced, made without any working tree; no ref names it yet."""
    blob = git(folder, "hash-object", "-w", "--stdin", stdin=content)
    with tempfile.TemporaryDirectory() as temporary:
        env = {"GIT_INDEX_FILE": str(Path(temporary, "index"))}
        git(folder, "read-tree", parent, env=env)
        git(folder, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", env=env)
        tree = git(folder, "write-tree", env=env)
    return git(folder, *identity(folder), "commit-tree", tree, "-p", parent, "-m", message)


def set_refs(folder: Path, refs: Mapping[str, str]) -> None:
    """Create or move local refs: {ref: object}; all of them or none."""
    lines = "".join(f"update {ref} {value}\n" for ref, value in refs.items())
    git(folder, "update-ref", "--stdin", stdin=f"start\n{lines}commit\n".encode())
