"""Git as a process: what it prints, or its own words as a UserError.

Every call of git runs in `environment`. Of the user's configuration it keeps what says who they are and how
a remote is reached (user.*, credentials, safe.directory, url.*.insteadOf, proxies, core.sshCommand), and not
what changes what a command does or prints. Plumbing commands are called where there are some: they read fewer
settings.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from csdn.runtime.errors import ServiceUnavailable, UserError

ORIGIN = "origin"
# What makes Git look at another repository than that of the folder, as a hook that calls us would.
_ELSEWHERE = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX", "GIT_NAMESPACE"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_QUARANTINE_PATH", "GIT_CONFIG"),
)
# Settings that would change what our commands do. They are given as the environment's, which count before
# those of every file, and which a command that DVC runs gets too.
NEUTRAL = {
    # Files and names are bytes, and stay as they are.
    "core.autocrlf": "false",
    "core.safecrlf": "false",
    "core.eol": "lf",
    "core.quotePath": "false",
    "i18n.commitEncoding": "UTF-8",
    "i18n.logOutputEncoding": "UTF-8",
    # Hooks are made for a person's commits; some check data out, or refuse what has no ticket's number.
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    # Nobody is there to unlock a key.
    "commit.gpgSign": "false",
    "tag.gpgSign": "false",
    "push.gpgSign": "false",
    "merge.verifySignatures": "false",
    # A push or a fetch moves the refs that it names, and no others.
    "push.followTags": "false",
    "push.recurseSubmodules": "no",
    "push.pushOption": "",
    "fetch.prune": "false",
    "fetch.pruneTags": "false",
    "fetch.recurseSubmodules": "false",
    "submodule.recurse": "false",
    # A merge is the one that `promote_ready` asks for, and its message ends with our trailers.
    "merge.ff": "true",
    "merge.log": "false",
    "merge.autoStash": "false",
    "commit.cleanup": "whitespace",
    "core.commentChar": "#",  # a trailer is no comment
    "trailer.separators": ":",
    "rerere.enabled": "false",
    # Other programs read this repository: DVC's libraries know no newer extensions.
    "worktree.useRelativePaths": "false",
    # No process of Git's stays behind, and no object goes that no ref names yet.
    "gc.auto": "0",
    "maintenance.auto": "false",
    "color.ui": "false",
    "column.ui": "never",
}
_ROLES = ("AUTHOR", "COMMITTER")
_NOBODY = {
    f"GIT_{role}_{what}": value
    for role in _ROLES
    for what, value in (("NAME", "csdn"), ("EMAIL", "csdn@localhost"))
}


class RemoteUnavailable(ServiceUnavailable):
    """A remote could not be reached, or gave no answer. The same call may work later."""


class PushRejected(UserError):
    """The Git remote refused a push; nothing of it is there."""


def environment() -> dict[str, str]:
    """This process's environment for git, and for DVC, which calls it: with the settings of NEUTRAL."""
    inherited = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    first = int(inherited.get("GIT_CONFIG_COUNT") or 0)  # the user's own come before ours, and ours count
    settings = {"GIT_CONFIG_COUNT": str(first + len(NEUTRAL))}
    for number, (key, value) in enumerate(NEUTRAL.items(), first):
        settings |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return inherited | settings | {"GIT_TERMINAL_PROMPT": "0"}  # nobody is there to type a password


def answer(
    folder: Path, *arguments: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run git in `folder`; its exit code is the caller's business. Raises UserError where there is no git."""
    given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    in_english = environment() | {"LC_ALL": "C"} | dict(env or {})
    try:
        return subprocess.run(
            ["git", *arguments], cwd=folder, env=in_english, capture_output=True, check=False, **given
        )
    except FileNotFoundError:
        if not folder.is_dir():
            raise
        raise UserError("there is no program git; install it") from None


def git(
    folder: Path,
    *arguments: str,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """What git prints, without the line's end. Raises UserError with its own words."""
    done = answer(folder, *arguments, stdin=stdin, env=env)
    if done.returncode:
        raise _failed(folder, arguments, done)
    return done.stdout.decode(errors="replace").rstrip("\n")


def words(stderr: bytes) -> str:
    """What a program wrote, with no password of an address in it."""
    text = stderr.decode(errors="replace").strip().expandtabs(4)  # a tab would be shown as \\t
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def _failed(folder: Path, arguments: Sequence[str], done: subprocess.CompletedProcess[bytes]) -> UserError:
    return UserError(f"{folder}: git {arguments[0]} failed:\n{words(done.stderr)}")


def _yes_or_no(folder: Path, *arguments: str) -> bool:
    """Whether git ends with 0 and not with 1. Raises UserError with its own words where it ends otherwise."""
    done = answer(folder, *arguments)
    if done.returncode not in (0, 1):
        raise _failed(folder, arguments, done)
    return done.returncode == 0


def check_root(folder: Path) -> None:
    """Raises UserError where `folder` is not the root of a Git working tree with a commit."""
    root = top_level(folder)
    if not root.samefile(folder):
        raise UserError(f"{folder}: the root of this Git repository is {root}; name that folder")
    if commit_of(folder, "HEAD") is None:
        raise UserError(f"{folder}: this Git repository has no commit yet; make the first one")


def top_level(folder: Path) -> Path:
    """The root of the working tree that `folder` is in. Raises UserError with Git's own words."""
    done = answer(folder, "rev-parse", "--show-toplevel")
    if done.returncode:
        raise UserError(f"{folder}: no Git repository that can be used:\n{words(done.stderr)}")
    return Path(os.fsdecode(done.stdout.removesuffix(b"\n")))


def commit_of(folder: Path, revision: str) -> str | None:
    """The commit's 40 digits, or None where there is no such revision."""
    arguments = ("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    done = answer(folder, *arguments)
    if done.returncode not in (0, 1):
        raise _failed(folder, arguments, done)
    return done.stdout.decode().strip() or None


def contains(folder: Path, commit: str, older: str) -> bool:
    """Whether `older` is `commit` or among its ancestors; both have to be there."""
    return _yes_or_no(folder, "merge-base", "--is-ancestor", older, commit)


def shown(folder: Path, form: str, *revisions: str) -> list[str]:
    """Commits in a form of git's (`man git-rev-list`), newest first; `revisions` may have options of it."""
    arguments = ("rev-list", "--no-commit-header", f"--format={form}%x00", *revisions)
    return [entry.removeprefix("\n") for entry in git(folder, *arguments).split("\0")[:-1]]


def file_at(folder: Path, commit: str, path: str) -> bytes | None:
    """A file's content in a commit; None where it is not there."""
    done = answer(folder, "cat-file", "--batch", stdin=f"{commit}:{path}\n".encode())
    header, _, content = done.stdout.partition(b"\n")
    missing = header.endswith(b" missing")
    if done.returncode or (missing and done.stderr):  # it is damaged, which Git says beside it
        raise _failed(folder, ("cat-file",), done)
    return None if missing else content.removesuffix(b"\n")


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
    # `git remote` also lists one of which a user's configuration says no more than how it is fetched.
    return _yes_or_no(folder, "config", "--get", f"remote.{ORIGIN}.url")


def fetch(folder: Path) -> None:
    """Bring branches and the registry's tags of `origin`, if there is one; there the tags' truth is."""
    if not has_origin(folder):
        return
    tags = [f"+refs/tags/csdn{mark}*:refs/tags/csdn{mark}*" for mark in "@#"]
    branches = f"+refs/heads/*:refs/remotes/{ORIGIN}/*"
    # An empty --refmap: the refspecs of remote.origin.fetch are left alone, which may be those of a mirror.
    done = answer(folder, "fetch", "--quiet", "--no-tags", "--no-prune", "--refmap=", ORIGIN, branches, *tags)
    if done.returncode:
        raise RemoteUnavailable(f"{folder}: git fetch from the remote {ORIGIN} failed:\n{words(done.stderr)}")


def push(folder: Path, updates: Mapping[str, str]) -> None:
    """Move refs of `origin`, if there is one: {ref: object}; all of them or none.

    Raises Refused where it says no, RemoteError where it does not answer.
    """
    if not has_origin(folder):
        return
    pairs = [f"{value}:{ref}" for ref, value in updates.items()]
    # Of a mirror every ref would be pushed, and ours could not be named.
    no_mirror = ("-c", f"remote.{ORIGIN}.mirror=false")
    done = answer(folder, *no_mirror, "push", "--atomic", "--porcelain", ORIGIN, *pairs)
    if not done.returncode:
        return
    refusals = [line.split(b"\t") for line in done.stdout.splitlines() if line.startswith(b"!")]
    if refusals:
        refs = [f"{words(pair).rpartition(':')[2]} {words(why)}" for _, pair, why in refusals]
        said = [line.rstrip() for line in words(done.stderr).splitlines() if line.startswith("remote:")]
        raise PushRejected("\n".join([f"{folder}: the Git remote {ORIGIN} refused:", *refs, *said]))
    raise RemoteUnavailable(f"{folder}: git push to the remote {ORIGIN} failed:\n{words(done.stderr)}")


def identity(folder: Path) -> Mapping[str, str]:
    """The environment that names an author and committer where the user has named none."""
    # Without user.useConfigOnly Git would make up a name from the machine's.
    asked = ("-c", "user.useConfigOnly=true", "var")
    known = all(not answer(folder, *asked, f"GIT_{role}_IDENT").returncode for role in _ROLES)
    return {} if known else _NOBODY


def stage_files(folder: Path, paths: Sequence[str]) -> None:
    """Have those of `paths` that are there, ignored ones too, in the next commit."""
    there = [path for path in paths if (folder / path).exists()]
    if there:
        git(folder, "add", "--force", "--", *there)


def anything_staged(folder: Path) -> bool:
    """Whether the next commit would differ from the last one."""
    return git(folder, "write-tree") != git(folder, "rev-parse", "HEAD^{tree}")


def commit(folder: Path, message: str) -> str:
    """Commit what is staged, be it nothing; returns the new commit."""
    parent = git(folder, "rev-parse", "HEAD")
    made = _commit_tree(folder, git(folder, "write-tree"), parent, message)
    git(folder, "update-ref", "-m", message.partition("\n")[0], "HEAD", made, parent)
    return made


def commit_file(folder: Path, parent: str, path: str, content: bytes, message: str) -> str:
    """A commit on `parent` with one file replaced, made without any working tree; no ref names it yet."""
    blob = git(folder, "hash-object", "-w", "--stdin", stdin=content)
    with tempfile.TemporaryDirectory() as temporary:
        env = {"GIT_INDEX_FILE": str(Path(temporary, "index"))}
        git(folder, "read-tree", parent, env=env)
        git(folder, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", env=env)
        tree = git(folder, "write-tree", env=env)
    return _commit_tree(folder, tree, parent, message)


def _commit_tree(folder: Path, tree: str, parent: str, message: str) -> str:
    text = message.encode(errors="replace")
    return git(folder, "commit-tree", tree, "-p", parent, stdin=text, env=identity(folder))


def fast_forward(folder: Path, commit: str) -> None:
    """Take the branch that is checked out in `folder` forward to `commit`, with its files."""
    git(folder, "merge", "--quiet", "--ff-only", "--commit", "--no-squash", commit)


def merge(folder: Path, commit: str, message: str) -> list[str]:
    """Merge a commit; returns the files that both sides changed, in which case nothing is merged."""
    arguments = ("merge", "--quiet", "--commit", "--no-squash", "-m", message, commit)
    done = answer(folder, *arguments, env=identity(folder))
    if not done.returncode:
        return []
    entries = git(folder, "ls-files", "--unmerged", "-z").split("\0")
    answer(folder, "merge", "--abort")
    if files := sorted({entry.partition("\t")[2] for entry in entries if entry}):
        return files
    raise _failed(folder, arguments, done)


def set_refs(folder: Path, refs: Mapping[str, str]) -> None:
    """Create or move local refs: {ref: object}; all of them or none."""
    lines = "".join(f"update {ref} {value}\n" for ref, value in refs.items())
    git(folder, "update-ref", "--stdin", stdin=f"start\n{lines}commit\n".encode())
