"""The git commands that the registry needs, run as processes; a failure is a UserError with Git's message.

Every command runs in `environment`. It keeps the parts of the user's configuration that say who they are and
how a remote is reached (user.*, credentials, safe.directory, url.*.insteadOf, proxies, core.sshCommand), and
overrides what changes what a command does or prints. Plumbing commands are preferred: they read fewer
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
# Variables by which Git works in another repository than the folder's; they are set if a hook calls us.
_REPOSITORY_VARIABLES = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX", "GIT_NAMESPACE"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_QUARANTINE_PATH", "GIT_CONFIG"),
)
# Settings that would change what our commands do. They are passed by the environment, which takes precedence
# over every file and is inherited by the git commands that DVC runs.
NEUTRAL = {
    # Contents and names of files stay as they are.
    "core.autocrlf": "false",
    "core.safecrlf": "false",
    "core.eol": "lf",
    "core.quotePath": "false",
    "i18n.commitEncoding": "UTF-8",
    "i18n.logOutputEncoding": "UTF-8",
    # Hooks are made for a person's commits: some check data out, or reject messages without a ticket number.
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    # A signing key may need a password.
    "commit.gpgSign": "false",
    "tag.gpgSign": "false",
    "push.gpgSign": "false",
    "merge.verifySignatures": "false",
    # A push or a fetch moves only the refs that it names.
    "push.followTags": "false",
    "push.recurseSubmodules": "no",
    "push.pushOption": "",
    "fetch.prune": "false",
    "fetch.pruneTags": "false",
    "fetch.recurseSubmodules": "false",
    "submodule.recurse": "false",
    "merge.autoStash": "false",
    "core.commentChar": "#",  # no trailer starts with it
    "trailer.separators": ":",
    "rerere.enabled": "false",
    # DVC's libraries do not support newer extensions of the repository format.
    "worktree.useRelativePaths": "false",
    # No background process, and no loss of objects that no ref names yet.
    "gc.auto": "0",
    "maintenance.auto": "false",
    "color.ui": "false",
    "column.ui": "never",
}
_ROLES = ("AUTHOR", "COMMITTER")
_FALLBACK_IDENTITY = {
    f"GIT_{role}_{what}": value
    for role in _ROLES
    for what, value in (("NAME", "csdn"), ("EMAIL", "csdn@localhost"))
}


class RemoteUnavailable(ServiceUnavailable):
    """A remote could not be reached, or did not respond. The same call may succeed later."""


class PushRejected(UserError):
    """The Git remote rejected a push; none of its refs has moved."""


def environment() -> dict[str, str]:
    """This process's environment with the settings of NEUTRAL, for git, and for DVC, which runs git."""
    inherited = {name: value for name, value in os.environ.items() if name not in _REPOSITORY_VARIABLES}
    first = int(inherited.get("GIT_CONFIG_COUNT") or 0)  # ours follow the user's, and the last one counts
    settings = {"GIT_CONFIG_COUNT": str(first + len(NEUTRAL))}
    for number, (key, value) in enumerate(NEUTRAL.items(), first):
        settings |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return inherited | settings | {"GIT_TERMINAL_PROMPT": "0"}  # never wait for a password


def run_git(
    folder: Path, *arguments: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run git in `folder`; the caller checks the exit code. Raises UserError if git is not installed."""
    in_english = environment() | {"LC_ALL": "C"} | dict(env or {})
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=in_english,
            capture_output=True,
            check=False,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
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
    """Run git; returns its output without the final newline. Raises UserError with Git's message."""
    done = run_git(folder, *arguments, stdin=stdin, env=env)
    if done.returncode:
        raise _failed(folder, arguments, done)
    return done.stdout.decode(errors="replace").rstrip("\n")


def error_text(stderr: bytes) -> str:
    """The error output of git or DVC, without passwords in addresses."""
    text = stderr.decode(errors="replace").strip().expandtabs(4)  # a tab would be shown as \\t
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def _failed(folder: Path, arguments: Sequence[str], done: subprocess.CompletedProcess[bytes]) -> UserError:
    return UserError(f"{folder}: git {arguments[0]} failed:\n{error_text(done.stderr)}")


def _succeeds(folder: Path, *arguments: str) -> bool:
    """True if git ends with 0, False if with 1. Raises UserError with Git's message for any other code."""
    done = run_git(folder, *arguments)
    if done.returncode not in (0, 1):
        raise _failed(folder, arguments, done)
    return done.returncode == 0


def check_root(folder: Path) -> None:
    """Raises UserError unless `folder` is the root of a Git working tree with a commit."""
    root = top_level(folder)
    if not root.samefile(folder):
        raise UserError(f"{folder}: the root of this Git repository is {root}; name that folder")
    if commit_of(folder, "HEAD") is None:
        raise UserError(f"{folder}: this Git repository has no commit yet; make the first one")


def top_level(folder: Path) -> Path:
    """The root of the working tree that `folder` is in. Raises UserError with Git's message."""
    done = run_git(folder, "rev-parse", "--show-toplevel")
    if done.returncode:
        raise UserError(f"{folder}: no Git repository that can be used:\n{error_text(done.stderr)}")
    return Path(os.fsdecode(done.stdout.removesuffix(b"\n")))


def commit_of(folder: Path, revision: str) -> str | None:
    """The commit's 40 hex digits; None if there is no such revision."""
    arguments = ("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    done = run_git(folder, *arguments)
    if done.returncode not in (0, 1):
        raise _failed(folder, arguments, done)
    return done.stdout.decode().strip() or None


def contains(folder: Path, commit: str, older: str) -> bool:
    """Whether `older` is `commit` or one of its ancestors; both must exist here."""
    return _succeeds(folder, "merge-base", "--is-ancestor", older, commit)


def format_commits(folder: Path, form: str, *revisions: str) -> list[str]:
    """Commits in a format of `git rev-list`, newest first; `revisions` may include its options."""
    arguments = ("rev-list", "--no-commit-header", f"--format={form}%x00", *revisions)
    return [entry.removeprefix("\n") for entry in git(folder, *arguments).split("\0")[:-1]]


def file_at(folder: Path, commit: str, path: str) -> bytes | None:
    """A file's content in a commit; None if the commit does not have it."""
    done = run_git(folder, "cat-file", "--batch", stdin=f"{commit}:{path}\n".encode())
    header, _, content = done.stdout.partition(b"\n")
    missing = header.endswith(b" missing")
    if done.returncode or (missing and done.stderr):  # the object is damaged
        raise _failed(folder, ("cat-file",), done)
    return None if missing else content.removesuffix(b"\n")


def changed_files(folder: Path) -> list[str]:
    """Tracked files that differ from the last commit, staged or not."""
    lines = git(folder, "status", "--porcelain", "-z", "--untracked-files=no", "--no-renames").split("\0")
    return sorted(line[3:] for line in lines if line)


def untracked_conflicts(folder: Path, commit: str) -> list[str]:
    """Untracked files of the folder that a checkout of the commit would overwrite."""
    theirs = git(folder, "ls-tree", "-r", "-z", "--name-only", commit).split("\0")
    known = set(git(folder, "ls-files", "-z").split("\0"))
    return sorted(path for path in theirs if path and path not in known and (folder / path).exists())


def worktree_of(workspace: Path, branch: str) -> Path | None:
    """The working tree in which a branch is checked out; None if there is none."""
    place = None
    for line in git(workspace, "worktree", "list", "--porcelain").splitlines():
        if line.startswith("worktree "):
            place = Path(line.removeprefix("worktree "))
        elif line == f"branch refs/heads/{branch}":
            return place
    return None


def has_origin(folder: Path) -> bool:
    # `git remote` also lists remotes that a user's configuration gives a refspec and no address.
    return _succeeds(folder, "config", "--get", f"remote.{ORIGIN}.url")


def fetch(folder: Path) -> None:
    """Fetch branches and the registry's tags from `origin`, if there is one; its tags replace ours."""
    if not has_origin(folder):
        return
    tags = [f"+refs/tags/csdn{mark}*:refs/tags/csdn{mark}*" for mark in "@#"]
    branches = f"+refs/heads/*:refs/remotes/{ORIGIN}/*"
    # An empty --refmap: the refspecs of remote.origin.fetch are not used, which may be those of a mirror.
    done = run_git(
        folder, "fetch", "--quiet", "--no-tags", "--no-prune", "--refmap=", ORIGIN, branches, *tags
    )
    if done.returncode:
        raise RemoteUnavailable(
            f"{folder}: git fetch from the remote {ORIGIN} failed:\n{error_text(done.stderr)}"
        )


def push(folder: Path, updates: Mapping[str, str]) -> None:
    """Push {ref: object} to `origin`, if there is one, atomically.

    Raises PushRejected, and RemoteUnavailable if the remote does not respond.
    """
    if not has_origin(folder):
        return
    pairs = [f"{value}:{ref}" for ref, value in updates.items()]
    # A push to a mirror pushes every ref, and accepts no refspecs.
    no_mirror = ("-c", f"remote.{ORIGIN}.mirror=false")
    done = run_git(folder, *no_mirror, "push", "--atomic", "--porcelain", ORIGIN, *pairs)
    if not done.returncode:
        return
    rejected = [line.split(b"\t") for line in done.stdout.splitlines() if line.startswith(b"!")]
    if rejected:
        refs = [f"{error_text(pair).rpartition(':')[2]} {error_text(why)}" for _, pair, why in rejected]
        said = [line.rstrip() for line in error_text(done.stderr).splitlines() if line.startswith("remote:")]
        raise PushRejected("\n".join([f"{folder}: the Git remote {ORIGIN} rejected the push:", *refs, *said]))
    raise RemoteUnavailable(f"{folder}: git push to the remote {ORIGIN} failed:\n{error_text(done.stderr)}")


def author_environment(folder: Path) -> Mapping[str, str]:
    """Environment variables for author and committer; empty if the user has configured a name."""
    # Without user.useConfigOnly Git would derive a name from the machine's.
    query = ("-c", "user.useConfigOnly=true", "var")
    known = all(not run_git(folder, *query, f"GIT_{role}_IDENT").returncode for role in _ROLES)
    return {} if known else _FALLBACK_IDENTITY


def stage_files(folder: Path, paths: Sequence[str]) -> None:
    """Stage those of `paths` that exist, ignored ones too."""
    there = [path for path in paths if (folder / path).exists()]
    if there:
        git(folder, "add", "--force", "--", *there)


def has_staged_changes(folder: Path) -> bool:
    """Whether the index differs from the last commit."""
    return git(folder, "write-tree") != git(folder, "rev-parse", "HEAD^{tree}")


def commit(folder: Path, message: str, *merged: str) -> str:
    """Commit what is staged, which may be nothing; returns the new commit. merged: further parents."""
    parent = git(folder, "rev-parse", "HEAD")
    made = _commit_tree(folder, git(folder, "write-tree"), (parent, *merged), message)
    git(folder, "update-ref", "-m", message.partition("\n")[0], "HEAD", made, parent)
    return made


def commit_files(folder: Path, parent: str, files: Mapping[str, bytes], message: str) -> str:
    """Create a commit on `parent` with files replaced, without a working tree and without moving a ref."""
    with tempfile.TemporaryDirectory() as temporary:
        env = {"GIT_INDEX_FILE": str(Path(temporary, "index"))}
        git(folder, "read-tree", parent, env=env)
        for path, content in files.items():
            blob = git(folder, "hash-object", "-w", "--stdin", stdin=content)
            git(folder, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", env=env)
        tree = git(folder, "write-tree", env=env)
    return _commit_tree(folder, tree, (parent,), message)


def _commit_tree(folder: Path, tree: str, parents: Sequence[str], message: str) -> str:
    named = [word for parent in parents for word in ("-p", parent)]
    text = message.encode(errors="replace")
    return git(folder, "commit-tree", tree, *named, stdin=text, env=author_environment(folder))


def fast_forward(folder: Path, commit: str) -> None:
    """Fast-forward the branch that is checked out in `folder` to `commit`, with its files."""
    git(folder, "merge", "--quiet", "--ff-only", "--commit", "--no-squash", commit)


def merge(folder: Path, theirs: str, message: str, merged: Mapping[str, bytes]) -> list[str]:
    """Merge a commit that the branch lacks; returns the conflicting files, in which case nothing is merged.

    merged: the contents of files that the caller has merged.
    """
    arguments = ("merge", "--quiet", "--no-commit", "--no-ff", "--no-squash", theirs)
    done = run_git(folder, *arguments)
    if commit_of(folder, "MERGE_HEAD") != theirs:
        raise _failed(folder, arguments, done)
    for path, content in merged.items():
        (folder / path).write_bytes(content)
    stage_files(folder, list(merged))
    entries = git(folder, "ls-files", "--unmerged", "-z").split("\0")
    if files := sorted({entry.partition("\t")[2] for entry in entries if entry}):
        git(folder, "merge", "--abort")
        return files
    commit(folder, message, theirs)
    git(folder, "merge", "--quit")
    return []


def set_refs(folder: Path, refs: Mapping[str, str]) -> None:
    """Create or move local refs {ref: object}, atomically."""
    lines = "".join(f"update {ref} {value}\n" for ref, value in refs.items())
    git(folder, "update-ref", "--stdin", stdin=f"start\n{lines}commit\n".encode())
