"""The DVC commands that a run needs. Its working tree shares the cache and the remotes of the workspace.

The cache, its link types and the remotes of a user's DVC configuration apply. Settings that would ask a
question or change Git's index are overridden in .dvc/config, and again in the config.local of a run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csdn.retraining import git
from csdn.retraining.git import RemoteUnavailable, error_text
from csdn.runtime.errors import UserError
from csdn.runtime.sanitize import redact

if TYPE_CHECKING:
    from dvc.config import Config


DVC = (sys.executable, "-m", "dvc")
LINKS = "reflink,hardlink,symlink,copy"
_LAST_LINES = 6


class ArtifactNotFound(UserError):
    """Neither the cache nor the remote has the files; a retry would not find them either."""


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run dvc in `folder`; the caller checks the exit code."""
    return subprocess.run(
        [*DVC, *arguments],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def environment() -> dict[str, str]:
    """The environment of DVC and its stages: Git's neutral settings, and this Python first in PATH.

    The commands in dvc.yaml start with `python`.
    """
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return git.environment() | {"PATH": programs, "DVC_NO_ANALYTICS": "1"}


def link_cache(workspace: Path, folder: Path, links: str | None = None, **core: Any) -> None:
    """Make the project in `folder` use the workspace's cache and remotes, with absolute paths.

    links: the cache's link types; by default the workspace's, or types that take no space.
    core: further settings of DVC's section "core".
    """
    from dvc.config import Config, merge

    config = config_of(workspace)
    kind = links or ",".join(config["cache"].get("type") or [LINKS])
    local = folder / ".dvc" / "config.local"
    local.touch(mode=0o600)  # it may contain keys of the remotes
    with Config(dvc_dir=folder / ".dvc").edit("local") as settings:
        merge(settings, config.load_one("repo"))
        merge(settings, config.load_one("local"))
        quiet = {"autostage": False, "interactive": False, "no_scm": False}
        merge(settings, {"cache": {"dir": str(cache_folder(workspace)), "type": kind}, "core": quiet | core})


def cache_folder(folder: Path) -> Path:
    """The folder of the project's cache."""
    return Path(config_of(folder)["cache"].get("dir") or folder / ".dvc" / "cache").resolve()


def default_remote(folder: Path) -> str | None:
    """The project's default remote as "name (address)", without credentials; None if none is set."""
    config = config_of(folder)
    name = config["core"].get("remote")
    if name is None:
        return None
    return f"{name} ({redact(str(config['remote'].get(name, {}).get('url', 'no address')))})"


def remotes(folder: Path) -> list[str]:
    """The names of the project's remotes, sorted. Raises UserError if there is no DVC project."""
    return sorted(config_of(folder)["remote"])


def config_of(folder: Path) -> Config:
    """DVC's settings in a project. Raises UserError if there is none."""
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
    """Check out what dvc.lock names from the cache. Raises UserError rather than overwrite unsaved files."""
    if (folder / "dvc.lock").exists():
        done = dvc(folder, "checkout", "--allow-missing")
        if done.returncode:
            raise UserError(f"{folder}: dvc checkout failed:\n{_last(done)}")


def pull_available(folder: Path) -> None:
    """Pull what dvc.lock names from the cache or the remote; files that neither has are skipped.

    Raises RemoteUnavailable if the remote does not respond.
    """
    remote = default_remote(folder)
    if remote is None or not (folder / "dvc.lock").exists():
        return checkout(folder)
    done = dvc(folder, "pull", "--allow-missing")
    if done.returncode:
        raise RemoteUnavailable(f"{folder}: dvc pull from {remote} failed:\n{_last(done)}")


def pull(folder: Path, paths: list[str], what: str) -> None:
    """Pull `paths` of dvc.lock from the cache, or else from the remote; `what` names them in errors.

    Raises ArtifactNotFound if neither has a file, RemoteUnavailable if the remote does not respond.
    """
    if not dvc(folder, "checkout", "--quiet", *paths).returncode:
        return
    remote = default_remote(folder)
    if remote is None:
        raise ArtifactNotFound(
            f"{what}: not in DVC's cache, and no DVC remote is set. Name the remote that has it "
            "(`dvc remote add --default NAME ADDRESS`), or the cache (`dvc cache dir FOLDER`)"
        )
    done = dvc(folder, "pull", "--allow-missing", *paths)
    if done.returncode:
        raise RemoteUnavailable(
            f"{what}: not in DVC's cache, and the DVC remote {remote} failed:\n{_last(done)}"
        )
    if dvc(folder, "checkout", "--quiet", *paths).returncode:  # the remote responded, and lacks a file
        raise ArtifactNotFound(
            f"{what}: neither in DVC's cache nor in the DVC remote {remote}. "
            "Check that this is the right remote; run `dvc push` where the files were made, or go back to a "
            "version that is there (`csdn rollback`)"
        )


def pull_if_there(folder: Path, path: str) -> bool:
    """Pull one path of dvc.lock if the cache or the remote has it; returns whether it is there."""
    return not all(dvc(folder, command, "--quiet", path).returncode for command in ("checkout", "pull"))


def push(folder: Path) -> None:
    """Push what dvc.lock names to the project's remote, if there is one. Raises RemoteUnavailable."""
    remote = default_remote(folder)
    if remote is None:
        return
    done = dvc(folder, "push")
    if done.returncode:
        raise RemoteUnavailable(f"{folder}: dvc push to the remote {remote} failed:\n{_last(done)}")


def _last(done: subprocess.CompletedProcess[bytes]) -> str:
    return "\n".join(error_text(done.stderr).splitlines()[-_LAST_LINES:])
