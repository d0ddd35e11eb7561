"""DVC as a process, in the workspace and in a run's working tree, which shares its cache and remotes.

Of a user's DVC configuration the cache, its links and the remotes hold. What would ask a question, or change
what Git has, is set in .dvc/config, and again in the config.local of a run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csdn.retraining import git
from csdn.retraining.git import RemoteUnavailable, words
from csdn.runtime.errors import UserError
from csdn.runtime.sanitize import redact

if TYPE_CHECKING:
    from dvc.config import Config


DVC = (sys.executable, "-m", "dvc")
LINKS = "reflink,hardlink,symlink,copy"
_LAST_LINES = 6
_ABSENT = re.compile("do not exist neither locally nor on remote")


class ArtifactNotFound(UserError):
    """Files that neither the cache nor the remote has: a second try does not find them either."""


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run dvc in `folder`; its exit code is the caller's business."""
    options = {"env": environment(), "stdin": subprocess.DEVNULL, "capture_output": True}
    return subprocess.run([*DVC, *arguments], cwd=folder, check=False, **options)


def environment() -> dict[str, str]:
    """For DVC and its stages: Git's neutral settings, and the programs beside this Python found first.

    dvc.yaml says `python`.
    """
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return git.environment() | {"PATH": programs, "DVC_NO_ANALYTICS": "1"}


def link_cache(workspace: Path, folder: Path, links: str | None = None, **core: Any) -> None:
    """Give the project in `folder` the workspace's cache and remotes: its settings, paths made right.

    links: how files of the cache appear; by default the workspace's way, or links that take no space.
    """
    from dvc.config import Config, merge

    config = _config(workspace)
    cache = config["cache"].get("dir") or workspace / ".dvc" / "cache"
    kind = links or ",".join(config["cache"].get("type") or [LINKS])
    local = folder / ".dvc" / "config.local"
    local.touch(mode=0o600)  # keys of the remotes may stand in it
    with Config(dvc_dir=folder / ".dvc").edit("local") as settings:
        merge(settings, config.load_one("repo"))
        merge(settings, config.load_one("local"))
        quiet = {"autostage": False, "interactive": False, "no_scm": False}
        merge(settings, {"cache": {"dir": str(Path(cache).resolve()), "type": kind}, "core": quiet | core})


def remote(folder: Path) -> tuple[str, str] | None:
    """(name, address as it may be shown) of the project's default remote; None where none is set."""
    config = _config(folder)
    name = config["core"].get("remote")
    if name is None:
        return None
    return name, redact(str(config["remote"].get(name, {}).get("url", "no address")))


def remotes(folder: Path) -> list[str]:
    """Names of the project's remotes, sorted. Raises UserError where there is no DVC project."""
    return sorted(_config(folder)["remote"])


def _config(folder: Path) -> Config:
    from dvc.config import Config, ConfigError

    if not (folder / ".dvc").is_dir():
        raise UserError(f"{folder}: no DVC project (there is no .dvc folder)")
    try:
        return Config(dvc_dir=folder / ".dvc")
    except ConfigError as error:
        raise UserError(
            f"{folder}/.dvc: {error}; `dvc config --list --show-origin` shows the settings"
        ) from None


def checkout(folder: Path) -> None:
    """Bring what dvc.lock names out of the cache. Raises UserError; nothing unsaved is overwritten."""
    if (folder / "dvc.lock").exists():
        done = dvc(folder, "checkout", "--allow-missing")
        if done.returncode:
            raise UserError(f"{folder}: dvc checkout failed:\n{_last(done)}")


def pull_available(folder: Path) -> None:
    """Bring what dvc.lock names, from the cache or the remote; what neither has is left out.

    Raises RemoteError where the remote does not answer.
    """
    asked = remote(folder)
    if asked is None or not (folder / "dvc.lock").exists():
        return checkout(folder)
    done = dvc(folder, "pull", "--allow-missing")
    if done.returncode and not _ABSENT.search(done.stderr.decode(errors="replace")):
        raise RemoteUnavailable(f"{folder}: dvc pull from {asked[0]} ({asked[1]}) failed:\n{_last(done)}")


def pull(folder: Path, paths: list[str], what: str) -> None:
    """Bring `paths` of dvc.lock, from the cache or else the remote.

    Raises Missing where a file is in neither, RemoteError where the remote does not answer.
    """
    if not dvc(folder, "checkout", "--quiet", *paths).returncode:
        return
    asked = remote(folder)
    if asked is None:
        raise ArtifactNotFound(
            f"{what}: not in DVC's cache, and no DVC remote is set. Name the remote that has it "
            "(`dvc remote add --default NAME ADDRESS`), or the cache (`dvc cache dir FOLDER`)"
        )
    done = dvc(folder, "pull", *paths)
    if done.returncode and _ABSENT.search(done.stderr.decode(errors="replace")):
        raise ArtifactNotFound(
            f"{what}: neither in DVC's cache nor in the DVC remote {asked[0]} ({asked[1]}). "
            "See that this is the right remote and that it answers; run `dvc push` where the files were "
            "made, or go back to a version that is there (`csdn rollback`)"
        )
    if done.returncode:
        raise RemoteUnavailable(
            f"{what}: not in DVC's cache, and the DVC remote {asked[0]} ({asked[1]}) failed:\n{_last(done)}"
        )


def push(folder: Path) -> None:
    """Copy what dvc.lock names to the project's remote, if there is one. Raises RemoteError."""
    asked = remote(folder)
    if asked is None:
        return
    done = dvc(folder, "push")
    if done.returncode:
        raise RemoteUnavailable(
            f"{folder}: dvc push to the remote {asked[0]} ({asked[1]}) failed:\n{_last(done)}"
        )


def _last(done: subprocess.CompletedProcess[bytes]) -> str:
    return "\n".join(words(done.stderr).splitlines()[-_LAST_LINES:])
