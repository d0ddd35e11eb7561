"""Versions of the model: GTO's tags, the champion that a commit names, and the files of a version.

    csdn@v3.0.0        version v3 is this commit
    csdn#champion#7    the seventh change of champion: to the version of this commit

GTO writes a tag at once, but a promotion sets its tags together with main, in one push. So GTO works in a
temporary clone that shares the objects, and only the tag objects are taken from it.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from csdn.ingest.forgotten import FORGOTTEN, Forgotten, newest, read_forgotten
from csdn.retraining.dvc import link_cache, pull, pull_if_there
from csdn.retraining.git import commit_of, fetch, file_at, format_commits, git
from csdn.runtime.errors import UserError
from csdn.runtime.files import atomic_folder, file_sha256
from csdn.training.champion import CHAMPION, Champion, ChampionFile, Start, parse_champion, read_champion

ARTIFACT, STAGE = "csdn", "champion"
_CHANGES = f"refs/tags/{ARTIFACT}#{STAGE}#*"  # of champion

Entry = TypeVar("Entry", bound=Start)


def version_tag(version: str) -> str:
    """GTO's tag of a version; GTO supports semantic versions only.

    >>> version_tag("v3")
    'csdn@v3.0.0'
    """
    return f"{ARTIFACT}@{version}.0.0"


def all_versions(folder: Path) -> list[str]:
    """The versions with a local tag, oldest first."""
    with _gto_errors(folder):
        from gto import api  # the import takes a second
        from gto.exceptions import ArtifactNotFound

        try:
            shown = api.show(str(folder), ARTIFACT, registered_only=True, deprecated=True)
        except ArtifactNotFound:
            return []
    names = (one["version"].removesuffix(".0.0") for one in shown)
    return sorted((name for name in names if name[1:].isdigit()), key=lambda name: int(name[1:]))


def versions_before(folder: Path, version: str) -> list[str]:
    """The versions that were champion before one, oldest first, without those that a rollback has left."""
    line = _line(_champions(folder))
    return line[: line.index(version)] if version in line else line


def rolled_back(folder: Path) -> list[str]:
    """The versions that a rollback has left, oldest first: a person found them bad."""
    champions = _champions(folder)
    left = set(champions).difference(_line(champions))
    return sorted(left, key=lambda name: int(name[1:]))


def _champions(folder: Path) -> list[str]:
    """The version of each change of champion, by GTO's tags."""
    form = "--format=%(*objectname) %(refname:strip=2)"
    names = git(folder, "for-each-ref", form, f"refs/tags/{ARTIFACT}@*").splitlines()
    of_commit = {line[:40]: line.rpartition("@")[2].removesuffix(".0.0") for line in names}
    changes = git(folder, "for-each-ref", "--sort=version:refname", form, _CHANGES).splitlines()
    return [of_commit[change[:40]] for change in changes if change[:40] in of_commit]


def _line(champions: list[str]) -> list[str]:
    """Without the versions that a rollback has left: a change to one that was champion before is a rollback.

    >>> _line(["v1", "v2", "v3", "v1", "v4"])
    ['v1', 'v4']
    """
    line: list[str] = []
    for name in champions:
        line = [*(line[: line.index(name)] if name in line else line), name]
    return line


def same_weights(folder: Path, embedding: str) -> str | None:
    """The version with these weights (their SHA-256) that a rollback has left; None if there is none."""
    forgotten = read_forgotten(folder / FORGOTTEN)
    for version in rolled_back(folder):
        entry = with_present_weights(champion_at(folder, version_tag(version)), forgotten)
        if entry and entry.embedding == embedding:
            return version
    return None


def next_version(folder: Path) -> str:
    """The version after the newest."""
    known = all_versions(folder)
    return f"v{1 + int(known[-1][1:])}" if known else "v1"


def known_tags(folder: Path) -> dict[str, str]:
    """{ref: object} of the registry's local tags; `origin` may lack them if it was added later."""
    form = "--format=%(refname) %(objectname)"
    listed = git(folder, "for-each-ref", form, f"refs/tags/{ARTIFACT}@*", f"refs/tags/{ARTIFACT}#*")
    return dict(line.split(" ") for line in listed.splitlines())


def commit_of_version(folder: Path, version: str) -> str | None:
    """The commit of a version; None if it has no local tag."""
    return commit_of(folder, f"refs/tags/{version_tag(version)}")


def tags_for(folder: Path, version: str, change: str) -> dict[str, str]:
    """{ref: tag object} that are missing for a change of champion; the objects are written, the refs are not.

    change: the commit whose champion.json names the version; for a new version also its own commit.
    """
    commit = commit_of_version(folder, version)
    if commit is not None and commit == _newest_assigned(folder):
        return {}
    name, email = format_commits(folder, "%cn%x1f%ce", "--no-walk", change)[0].split("\x1f")
    with _gto_errors(folder), TemporaryDirectory() as temporary:
        from gto import api

        unsigned = ("--config", "tag.gpgSign=false")  # GTO reads Git's files, not our environment
        git(folder, "clone", "--quiet", "--shared", "--no-checkout", *unsigned, str(folder), temporary)
        number = f"{version}.0.0"
        if commit is None:
            api.register(temporary, ARTIFACT, change, version=number, author=name, author_email=email)
        api.assign(temporary, ARTIFACT, STAGE, version=number, force=True, author=name, author_email=email)
        known = known_tags(folder)
        made = {ref: tag for ref, tag in known_tags(Path(temporary)).items() if ref not in known}
        git(folder, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", temporary, *made)
    return made


def _newest_assigned(folder: Path) -> str | None:
    """The commit of the newest change of champion, by its number: clocks of machines differ."""
    newest = ("--sort=-version:refname", "--count=1", "--format=%(refname)")
    ref = git(folder, "for-each-ref", *newest, _CHANGES)
    return commit_of(folder, ref) if ref else None


@contextmanager
def _gto_errors(folder: Path) -> Iterator[None]:
    from gto.exceptions import GTOException

    try:
        yield
    except GTOException as error:
        advice = f"`gto show {ARTIFACT}` lists the versions, `git tag --list '{ARTIFACT}[@#]*'` their tags"
        raise UserError(f"{folder}: GTO: {error}; {advice}") from None


# The champion that a commit names.


def champion_at(folder: Path, commit: str) -> Champion | None:
    """The champion in a commit. Raises UserError."""
    return champion_file_at(folder, commit).champion


def named_champion(folder: Path, commit: str) -> Champion:
    """The champion in a commit that made one. Raises UserError if it names none."""
    champion = champion_at(folder, commit)
    if champion is None:
        raise UserError(f"{folder}: {CHAMPION} in commit {commit[:12]} names no champion; it was edited")
    return champion


def champion_file_at(folder: Path, commit: str) -> ChampionFile:
    """champion.json of a commit; one without a champion if the file is missing. Raises UserError."""
    content = file_at(folder, commit, CHAMPION)
    if content is None:
        return ChampionFile(champion=None, start=None)
    return parse_champion(content, f"{CHAMPION} in commit {commit[:12]}")


def missing_tags(folder: Path, commit: str) -> dict[str, str]:
    """{ref: tag} of the champion that a killed call has not set."""
    champion = champion_at(folder, commit)
    if champion is None:
        return {}
    change = format_commits(folder, "%H", "--max-count=1", commit, "--", CHAMPION)[0]
    return tags_for(folder, champion.version, change)


# The files of a version, from DVC's cache or remote, by the commit of its tag.

# Path in the project -> path in the champion's folder.
FILES = {
    "models/prompts": "prompts",
    "models/embedding": "embedding",
    "data/samples.parquet": "data/samples.parquet",
    "data/people.parquet": "data/people.parquet",
}
THRESHOLDS = "evaluation/thresholds.json"  # at the same place in both; versions before it have none
# The files that DVC needs to check out a commit's outputs.
DEFINITION = ("dvc.yaml", "dvc.lock", "params.yaml")


def fetch_champion(root: str | Path, version: str, folder: str | Path) -> None:
    """Fetch a version's files to `folder`: {prompts,embedding,data}/, and evaluation/thresholds.json if the
    version has it; on an error `folder` is not changed.

    root: a workspace or a run's working tree, whose cache and remotes are used. Raises UserError;
    `dvc.ArtifactNotFound` if neither the cache nor the remote has a file.
    """
    root, folder = Path(root).resolve(), Path(folder)
    forgotten = read_forgotten(root / FORGOTTEN)
    entry = _entry(root, version)
    if entry and _is_complete(folder, entry, forgotten):
        return
    commit = commit_of_version(root, version)
    if commit is None:
        fetch(root)
        commit = commit_of_version(root, version)
    if commit is None:
        raise UserError(
            f"{root}: there is no tag {version_tag(version)}, which says where version {version} is; "
            "`csdn history` lists the versions, `git fetch --tags --unshallow` completes a shallow clone"
        )
    entry = entry or with_present_weights(champion_at(root, commit), forgotten)
    if entry is None or entry.version != version:
        raise UserError(f"the commit of tag {version_tag(version)} has no champion.json that names {version}")
    if _is_complete(folder, entry, forgotten):
        return
    with atomic_folder(folder) as temporary:
        project = temporary / "project"
        _unpack(root, commit, project, forgotten)
        link_cache(root, project, links="reflink,copy", no_scm=True)
        pull(project, list(FILES), f"files of version {version}")
        for source, target in FILES.items():
            (temporary / target).parent.mkdir(exist_ok=True)
            (project / source).replace(temporary / target)
        if pull_if_there(project, THRESHOLDS):
            (temporary / THRESHOLDS).parent.mkdir()
            (project / THRESHOLDS).replace(temporary / THRESHOLDS)
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


def _is_complete(folder: Path, entry: Start, forgotten: Forgotten) -> bool:
    if not all((folder / target).exists() for target in FILES.values()):
        return False
    return not _mismatches(folder, entry) and not _shows_forgotten(folder, forgotten)


def _shows_forgotten(folder: Path, forgotten: Forgotten) -> bool:
    """Whether the folder's tables are those from before a person was forgotten."""
    tables = (folder / target for target in FILES.values() if target.endswith(".parquet"))
    return bool(forgotten.objects) and any(_md5(table) in forgotten.objects for table in tables)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def _mismatches(folder: Path, entry: Start) -> list[str]:
    """The files of weights whose SHA-256 is not that of the entry."""
    hashes = {"prompts/prompts.safetensors": entry.prompts, "embedding/model.safetensors": entry.embedding}
    return [name for name, value in hashes.items() if sha256(folder / name) != value]


def sha256(path: Path) -> str | None:
    """A file's SHA-256 in hex; None if it does not exist."""
    try:
        return file_sha256(path)
    except FileNotFoundError:
        return None


def _unpack(root: Path, commit: str, folder: Path, forgotten: Forgotten) -> None:
    """Write the files that DVC needs to know a commit's outputs into a folder, without a working tree."""
    (folder / ".dvc").mkdir(parents=True)
    for name in DEFINITION:
        content = file_at(root, commit, name)
        if content is None:
            raise UserError(f"{root}: commit {commit[:12]} has no {name}; it is no version of this pipeline")
        (folder / name).write_bytes(present_lock(content, forgotten) if name == "dvc.lock" else content)
    # Cache and remotes are those of the workspace (`link_cache`): they may have moved since that commit.
    (folder / ".dvc" / "config").write_text("")


# After a person was forgotten (csdn.privacy), other files stand for those that a version's commit names.


def with_present_weights(entry: Entry | None, forgotten: Forgotten) -> Entry | None:
    """A version's entry with the hashes that its files of weights have now."""
    if entry is None:
        return None
    hashes = {"prompts": entry.prompts, "embedding": entry.embedding}
    return entry.model_copy(
        update={stage: newest(forgotten.weights, value) or value for stage, value in hashes.items()}
    )


def present_lock(lock: bytes, forgotten: Forgotten) -> bytes:
    """The text of a dvc.lock with the outputs that there are now, without those that nothing has replaced."""
    if not forgotten.objects:
        return lock
    from ruamel.yaml import YAML

    # As DVC writes the file: what is not replaced stays, to the byte. No tag of the text makes an object.
    yaml = YAML(typ="rt")
    value = yaml.load(lock)
    for stage in value.get("stages", {}).values():
        for out in stage.get("outs", ()):
            replaced = newest(forgotten.objects, out.get("md5", ""), follow="md5")
            if replaced is not None:
                out.update(replaced or {"md5": ""})
        if "outs" in stage:
            stage["outs"] = [out for out in stage["outs"] if out.get("md5") != ""]
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue().encode()


def start_after(root: Path, entry: Start | None, forgotten: Forgotten) -> Start | None:
    """What training starts from: the version of `entry`, or, if that was trained on a forgotten person, the
    newest version before it that was not; None: from CLIP.
    """
    if entry is not None and entry.version in forgotten.versions:
        older = [one for one in versions_before(root, entry.version) if one not in forgotten.versions]
        entry = champion_at(root, version_tag(older[-1])) if older else None
    entry = with_present_weights(entry, forgotten)
    return entry and Start(version=entry.version, prompts=entry.prompts, embedding=entry.embedding)
