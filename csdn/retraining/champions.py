"""A version's files, whole and checked: out of DVC's cache or remote, by the commit of its tag."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from csdn.retraining.dvc import link_cache, pull
from csdn.retraining.git import fetch, file_at
from csdn.retraining.mainline import champion_at
from csdn.retraining.tags import commit_of_version, version_tag
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_folder
from csdn.training.champion import Start, read_champion

# What the pipeline wrote -> where it lies among the champion's files.
FILES = {
    "models/prompts": "prompts",
    "models/embedding": "embedding",
    "data/samples.parquet": "data/samples.parquet",
    "data/people.parquet": "data/people.parquet",
}
# Where DVC reads which files there are, and how they are called.
DEFINITION = ("dvc.yaml", "dvc.lock", "params.yaml")


def fetch_champion(root: str | Path, version: str, folder: str | Path) -> None:
    """Have a version's files in `folder`: {prompts,embedding,data}/; all of them, or `folder` stays.

    root: a workspace or a run's working tree, whose cache and remotes are asked.
    Raises UserError, where files are in no place `dvc_files.Missing`.
    """
    root, folder = Path(root).resolve(), Path(folder)
    wanted = _named(root, version)
    commit = commit_of_version(root, version)
    if commit is None:
        fetch(root)
        commit = commit_of_version(root, version)
    if commit is None:
        raise UserError(
            f"{root}: there is no tag {version_tag(version)}, which says where version {version} is; "
            "`csdn history` lists the versions, `git fetch --tags --unshallow` completes a shallow clone"
        )
    wanted = wanted or champion_at(root, commit)
    if wanted is None or wanted.version != version:
        raise UserError(f"the commit of tag {version_tag(version)} has no champion.json that names {version}")
    if _is_there(folder, wanted):
        return
    with atomic_folder(folder) as temporary:
        project = temporary / "project"
        _unpack(root, commit, project)
        link_cache(root, project, links="reflink,copy", no_scm=True)
        pull(project, list(FILES), f"files of version {version}")
        for source, target in FILES.items():
            (temporary / target).parent.mkdir(exist_ok=True)
            (project / source).replace(temporary / target)
        shutil.rmtree(project)
        _check(temporary, wanted)


def _named(root: Path, version: str) -> Start | None:
    """The version as champion.json below `root` has it, if it names it: Git keeps this file, tags move."""
    file = read_champion(root)
    return next((one for one in (file.champion, file.start) if one and one.version == version), None)


def _is_there(folder: Path, wanted: Start) -> bool:
    whole = all((folder / target).exists() for target in FILES.values())
    return whole and not _different(folder, wanted)


def _check(folder: Path, wanted: Start) -> None:
    if names := _different(folder, wanted):
        raise UserError(
            f"version {wanted.version}: {', '.join(names)} is not the file that champion.json names by its "
            "SHA-256; `git log champion.json` shows who changed it"
        )


def _different(folder: Path, wanted: Start) -> list[str]:
    named = {"prompts/prompts.safetensors": wanted.prompts, "embedding/model.safetensors": wanted.embedding}
    return [name for name, value in named.items() if sha256(folder / name) != value]


def sha256(path: Path) -> str | None:
    """A file's SHA-256 in hex; None where it is not there."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _unpack(root: Path, commit: str, folder: Path) -> None:
    """What DVC has to know of a commit, in a folder that is no working tree."""
    (folder / ".dvc").mkdir(parents=True)
    for name in DEFINITION:
        content = file_at(root, commit, name)
        if content is None:
            raise UserError(f"{root}: commit {commit[:12]} has no {name}; it is no version of this pipeline")
        (folder / name).write_bytes(content)
    # Where the cache and the remotes are, the workspace knows: they may have moved since that commit.
    (folder / ".dvc" / "config").write_text("")
