"""Where a person is in the project's data: the survey from which `csdn forget` plans, and which changes
nothing.

An output set is the workspace's outputs, or those of a dvc.lock in Git's history. Of each set the tables say
which images are the person's and in which shards they are; config.json says whether its model was trained on
the person.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from csdn.data.catalog import INDEX_SCHEMA, SAMPLES_SCHEMA, read_table
from csdn.data.labels import canonical_label, label_fault
from csdn.data.shards import has_bytes_of
from csdn.data.storage import Store
from csdn.ingest.forgotten import Forgotten
from csdn.ingest.identities import read_aliases
from csdn.ingest.ledger import Drop, Status, read_ledger
from csdn.ingest.sources.cameras import split_manifest
from csdn.params import Params
from csdn.privacy.drops import paths_of_others
from csdn.privacy.objects import Objects, Values, locks_of, outputs_of
from csdn.privacy.rewrite import Removal, of_person, row_of, shows_images
from csdn.retraining import git, versions
from csdn.retraining.versions import present_lock
from csdn.runtime.documents import read_json
from csdn.runtime.errors import UserError

SHARDS, INDEX = "data/shards", "data/index"
TABLES = ("data/people.parquet", "data/samples.parquet", "data/quarantine.parquet")
FOLDERS = (INDEX, "models", "evaluation", "report")


@dataclass(frozen=True)
class OutputSet:
    """Outputs that were made together. files: path in the project -> where it lies; without shards.

    outs: path -> values in dvc.lock, and hashes: path -> MD5 of each file; empty for the workspace. shards:
    name -> MD5, of those that DVC keeps.
    """

    name: str
    files: dict[str, Path]
    outs: dict[str, Values] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    shards: dict[str, str] = field(default_factory=dict)


def outputs_in(root: Path) -> OutputSet:
    """The outputs in a working tree."""
    paths = [root / name for name in TABLES]
    paths += [path for folder in FOLDERS for path in (root / folder).rglob("*")]
    files = {path.relative_to(root).as_posix(): path for path in sorted(paths) if path.is_file()}
    return OutputSet("the workspace", files)


def output_sets(root: Path, objects: Objects, forgotten: Forgotten) -> tuple[list[OutputSet], list[str]]:
    """(the outputs of each dvc.lock, a line for each that neither the cache nor a remote has)."""
    sets, missing, seen = [], [], set()
    for name, content in locks_of(root):
        outs = outputs_of(present_lock(content, forgotten), name)
        found = OutputSet(name, {}, outs)
        for path, values in outs.items():
            for file, md5 in _files_of(path, values["md5"], objects, missing, name).items():
                if path == SHARDS:
                    found.shards[file.rpartition("/")[2]] = md5
                elif file in TABLES or file.startswith(tuple(f"{folder}/" for folder in FOLDERS)):
                    # What is removed anyway is not fetched from a remote.
                    place = objects.cached(md5) if shows_images(file) else objects.path(md5)
                    if place is None:
                        missing.append(f"{file} of {name}: neither in DVC's cache nor in a remote")
                        continue
                    found.files[file], found.hashes[file] = place, md5
        state = frozenset({**found.hashes, **found.shards}.items())
        if state not in seen:
            seen.add(state)
            sets.append(found)
    return sets, missing


def _files_of(path: str, md5: str, objects: Objects, missing: list[str], name: str) -> dict[str, str]:
    """Path in the project -> MD5 of the files of an output."""
    if not md5.endswith(".dir"):
        return {path: md5}
    files = objects.files_of(md5)
    if files is None:
        missing.append(f"{path} of {name}: neither in DVC's cache nor in a remote")
        return {}
    return {f"{path}/{inner}": one for inner, one in files.items()}


@dataclass
class Survey:
    """What was found: the images, shards and row of the person, and the versions trained on them."""

    removal: Removal
    images: set[str] = field(default_factory=set)
    shards: set[str] = field(default_factory=set)
    row: int | None = None
    versions: list[str] = field(default_factory=list)
    sets: list[OutputSet] = field(default_factory=list)  # those that show the person
    missing: list[str] = field(default_factory=list)
    # What drops in use say of others: SHA-256 of images, and (folder, path) of files.
    others: set[str] = field(default_factory=set)
    claimed: set[tuple[str, str]] = field(default_factory=set)

    @property
    def found(self) -> bool:
        return bool(self.images or self.sets)


def labels_of(person: str, params: Params, root: Path) -> frozenset[str]:
    """The canonical labels that mean a person, by the project's aliases. Raises UserError."""
    if fault := label_fault(person):
        raise UserError(f"{person!r} {fault}; name a person as the drops do")
    aliases = read_aliases(root / params.data.aliases)
    meant = aliases.get(canonical_label(person), canonical_label(person))
    return frozenset({meant, *(label for label, other in aliases.items() if other == meant)})


def survey(root: Path, removal: Removal, objects: Objects, forgotten: Forgotten) -> Survey:
    """Look for a person in the workspace's outputs and in those of every dvc.lock."""
    sets, missing = output_sets(root, objects, forgotten)
    here = outputs_in(root)
    found = Survey(removal, missing=missing + objects.unreachable)
    ledger = {drop.id: drop for drop in read_ledger(root / "data/drops.json")}
    found.claimed = paths_of_others(ledger.values(), removal)
    found.images, found.others = _images(here, sets, ledger, removal, found.claimed)
    found.removal = removal = replace(removal, images=removal.images | found.images)
    for one in (here, *sets):
        shards, shown = _shards(one, removal), row_of(one.files, removal)
        if shards or shown is not None or _trained(one, removal):
            found.sets.append(one)
        found.shards |= shards
        if shown is not None and (found.row is None or one is here):
            found.row = shown
    found.versions = _versions_trained(root, sets, removal, forgotten)
    return found


def _images(
    here: OutputSet,
    sets: Sequence[OutputSet],
    ledger: Mapping[str, Drop],
    removal: Removal,
    claimed: Collection[tuple[str, str]],
) -> tuple[set[str], set[str]]:
    """SHA-256 of (the person's images, images of others): the person's are those with the label in a drop
    that is in use, and those with the label anywhere else, unless a drop in use says that they show another
    person (`csdn relabel`; ingest need not have read it yet).
    """
    certain, others, doubtful = set[str](), set[str](), set[str]()
    for name, path in indexes(here):
        drop = ledger.get(Path(name).stem)
        index = read_table(path, INDEX_SCHEMA, ["key", "person", "path"])
        mask = pc.is_in(index["person"], removal.labels_in(index["person"]))
        own = index.filter(mask)
        keys = set(own["key"].to_pylist())
        if drop and drop.status != Status.REJECTED:
            certain |= keys
            others |= set(index["key"].filter(pc.invert(mask)).to_pylist())
            continue
        doubtful |= keys
        if drop:
            folder = split_manifest(drop.address)[0]
            rows = zip(own["path"].to_pylist(), own["key"].to_pylist(), strict=True)
            others |= {key for path, key in rows if (folder, path) in claimed}
    for one in sets:
        for _, path in indexes(one):
            index = read_table(path, INDEX_SCHEMA, ["key", "person"])
            mask = pc.is_in(index["person"], removal.labels_in(index["person"]))
            doubtful |= set(index["key"].filter(mask).to_pylist())
        if (row := row_of(one.files, removal)) is not None and "data/samples.parquet" in one.files:
            samples = read_table(one.files["data/samples.parquet"], SAMPLES_SCHEMA, ["key", "person_row"])
            doubtful |= set(samples["key"].filter(pc.equal(samples["person_row"], row)).to_pylist())
    others -= certain
    return certain | (doubtful - others), others


def indexes(one: OutputSet) -> Iterator[tuple[str, Path]]:
    """The indexes of drops in an output set."""
    for name, path in one.files.items():
        if name.startswith(f"{INDEX}/") and not name.endswith(".quarantine.parquet"):
            yield name, path


def _shards(one: OutputSet, removal: Removal) -> set[str]:
    """The shards with images of the person, by the tables of an output set."""
    found = set[str]()
    for _, path in indexes(one):
        index = read_table(path, INDEX_SCHEMA)
        found |= set(index["shard"].filter(of_person(index, removal)).to_pylist())
    if path := one.files.get("data/samples.parquet"):
        samples = read_table(path, SAMPLES_SCHEMA, ["key", "person_row", "shard"])
        gone = pc.is_in(samples["key"], pa.array(sorted(removal.images), pa.string()))
        if (row := row_of(one.files, removal)) is not None:
            gone = pc.or_(gone, pc.equal(samples["person_row"], row))
        found |= set(samples["shard"].filter(gone).to_pylist())
    return found


def _trained(one: OutputSet, removal: Removal) -> bool:
    """Whether a model of an output set was trained on the person."""
    configs = (one.files.get(f"models/{stage}/config.json") for stage in ("prompts", "embedding"))
    return any(removal.is_label(name) for path in configs if path for name in read_json(path)["people"])


def _versions_trained(
    root: Path, sets: Sequence[OutputSet], removal: Removal, forgotten: Forgotten
) -> list[str]:
    """The versions that were trained on the person, or from a version that was."""
    trained = list[str]()
    by_model = {values["md5"]: one for one in sets if (values := one.outs.get("models/embedding"))}
    for version in versions.all_versions(root):
        commit = versions.commit_of_version(root, version)
        lock = git.file_at(root, commit, "dvc.lock")
        start = versions.champion_file_at(root, commit).start
        outs = outputs_of(present_lock(lock, forgotten), "dvc.lock") if lock else {}
        values = outs.get("models/embedding")
        own = by_model.get(values["md5"]) if values else None
        if (start and start.version in trained) or (own and _trained(own, removal)):
            trained.append(version)
    return trained


def shard_path(root: Path, store: str | None, name: str, md5: str | None, objects: Objects) -> Path | None:
    """Where a shard lies on this machine, which may be a copy of a store's; None if nobody has it."""
    if (here := root / SHARDS / name).exists():
        return here
    if store and (listed := Store(store).find(name)):
        copy = objects.temporary / name
        if not has_bytes_of(name, copy):
            copy.write_bytes(Store(store).read(listed))
        return copy
    return objects.path(md5) if md5 else None
