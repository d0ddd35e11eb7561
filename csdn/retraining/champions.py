"""Fetch the files of a version from DVC's cache or remote, by the commit of its tag; check their hashes."""

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

# Path in the project -> path in the champion's folder.
FILES = {
    "models/prompts": "prompts",
    "models/embedding": "embedding",
    "data/samples.parquet": "data/samples.parquet",
    "data/people.parquet": "data/people.parquet",
}
# The files that DVC needs to check out a commit's outputs.
DEFINITION = ("dvc.yaml", "dvc.lock", "params.yaml")


def fetch_champion(root: str | Path, version: str, folder: str | Path) -> None:
    """Fetch a version's files to `folder`: {prompts,embedding,data}/; on an error `folder` is not changed.

    root: a workspace or a run's working tree, whose cache and remotes are used. Raises UserError;
    `dvc.ArtifactNotFound` if neither the cache nor the remote has a file.
    """
    root, folder = Path(root).resolve(), Path(folder)
    entry = _entry(root, version)
    commit = commit_of_version(root, version)
    if commit is None:
        fetch(root)
        commit = commit_of_version(root, version)
    if commit is None:
        raise UserError(
            f"{root}: there is no tag {version_tag(version)}, which says where version {version} is; "
            "`csdn history` lists the versions, `git fetch --tags --unshallow` completes a shallow clone"
        )
    entry = entry or champion_at(root, commit)
    if entry is None or entry.version != version:
        raise UserError(f"the commit of tag {version_tag(version)} has no champion.json that names {version}")
    if _is_complete(folder, entry):
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
        if names := _mismatches(temporary, entry):
            raise UserError(
                f"version {version}: {', '.join(names)} is not the file that champion.json names by its "
                "SHA-256; `git log champion.json` shows who changed it"
            )


def _entry(root: Path, version: str) -> Start | None:
    """The version's entry in champion.json below `root`, which is preferred to the tag's: a tag may move."""
    file = read_champion(root)
    return next((one for one in (file.champion, file.start) if one and one.version == version), None)


def _is_complete(folder: Path, entry: Start) -> bool:
    complete = all((folder / target).exists() for target in FILES.values())
    return complete and not _mismatches(folder, entry)


def _mismatches(folder: Path, entry: Start) -> list[str]:
    """The files of weights whose SHA-256 is not that of the entry."""
    hashes = {"prompts/prompts.safetensors": entry.prompts, "embedding/model.safetensors": entry.embedding}
    return [name for name, value in hashes.items() if sha256(folder / name) != value]


def sha256(path: Path) -> str | None:
    """A file's SHA-256 in hex; None if it does not exist."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _unpack(root: Path, commit: str, folder: Path) -> None:
    """Write the files that DVC needs to know a commit's outputs into a folder, without a working tree."""
    (folder / ".dvc").mkdir(parents=True)
    for name in DEFINITION:
        content = file_at(root, commit, name)
        if content is None:
            raise UserError(f"{root}: commit {commit[:12]} has no {name}; it is no version of this pipeline")
        (folder / name).write_bytes(content)
    # Cache and remotes are those of the workspace (`link_cache`): they may have moved since that commit.
    (folder / ".dvc" / "config").write_text("")
