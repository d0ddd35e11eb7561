"""Where a person is in the project's data: the survey from which `csdn forget` plans, and which changes
nothing.

An output set is the workspace's outputs, or those of a dvc.lock in Git's history. Of each set the tables say
which images are the person's and in which shards they are; config.json says whether its model was trained on
the person.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from csdn.data.catalog import INDEX_SCHEMA, SAMPLES_SCHEMA, read_table
from csdn.data.labels import canonical_label, label_fault
from csdn.data.shards import has_bytes_of
from csdn.data.storage import Store
from csdn.ingest.forgotten import Forgotten
from csdn.ingest.identities import parse_aliases, read_aliases
from csdn.ingest.ledger import Drop, Status
from csdn.params import Params, load_params
from csdn.privacy.drops import FileOf, folder_of, labels_in_drops, paths_of_others
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
    sets, missing, seen = list[OutputSet](), list[str](), set[frozenset[tuple[str, str]]]()
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
    # What drops in use say of others: SHA-256 of images, and files.
    others: set[str] = field(default_factory=set)
    claimed: set[FileOf] = field(default_factory=set)
    copies: set[FileOf] = field(default_factory=set)  # files with the person's images, whatever drops say

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


def survey(
    root: Path, removal: Removal, objects: Objects, forgotten: Forgotten, drops: Sequence[Drop]
) -> Survey:
    """Look for a person in the workspace's outputs and in those of every dvc.lock; drops: `all_drops`."""
    sets, missing = output_sets(root, objects, forgotten)
    here = outputs_in(root)
    if any(forgotten.person(label) for label in removal.labels):
        removal = with_recorded_labels(root, removal, forgotten, [here, *sets], drops)
    found = Survey(removal, missing=missing + objects.unreachable)
    found.claimed = paths_of_others(drops, removal)
    found.images, found.others = _images(here, sets, drops, removal, found.claimed)
    found.removal = removal = replace(removal, images=removal.images | found.images)
    found.copies = _copies(here, drops, removal)
    for one in (here, *sets):
        shards, shown = _shards(one, removal), row_of(one.files, removal)
        if shards or shown is not None or _trained(one, removal):
            found.sets.append(one)
        found.shards |= shards
        if shown is not None and (found.row is None or one is here):
            found.row = shown
    found.versions = _versions_trained(root, sets, removal, forgotten, found.missing)
    return found


def with_recorded_labels(
    root: Path, removal: Removal, forgotten: Forgotten, sets: Sequence[OutputSet], drops: Iterable[Drop]
) -> Removal:
    """The removal of somebody who was forgotten before, with all labels of theirs that are still somewhere:
    aliases are gone from data/aliases.json by then, and data/forgotten.json has only their hashes.
    """
    labels = labels_in_drops(drops).union(_labels_in_aliases(root), *map(_labels_in, sets))
    found = {label: forgotten.person(label) for label in forgotten.among(labels - {removal.name})}
    labels = {label for label, person in found.items() if person and person.name == removal.name}
    return replace(removal, labels=removal.labels.union(map(canonical_label, labels)))


def _labels_in(one: OutputSet) -> set[str]:
    """The labels of people in the tables and models of an output set."""
    found = set[str]()
    for name, path in one.files.items():
        if name.startswith("data/") and "person" in pq.read_schema(path).names:
            found |= set(pq.read_table(path, columns=["person"])["person"].unique().to_pylist()) - {None}
    return found.union(*_people_of_models(one))


def _labels_in_aliases(root: Path) -> set[str]:
    """The labels in the file of aliases, in any commit."""
    name, found = load_params(root / "params.yaml").data.aliases, set[str]()
    for commit in git.git(root, "rev-list", "--all", "--full-history", "--", name).split():
        with suppress(UserError):  # it is not there, or is no such file
            aliases = parse_aliases(git.file_at(root, commit, name) or b"", name)
            found |= {*aliases, *aliases.values()}
    return found


def _images(
    here: OutputSet,
    sets: Sequence[OutputSet],
    drops: Sequence[Drop],
    removal: Removal,
    claimed: Collection[FileOf],
) -> tuple[set[str], set[str]]:
    """SHA-256 of (the person's images, images of others).

    Of the drops in use, the first that gives an image to one person only decides, as in ingest. The label
    anywhere else (in a rejected drop, in a version, or beside another label in the same drop) makes an image
    the person's, unless a drop in use says that it shows somebody else. That may be a correction
    (`csdn relabel`) that ingest has not read yet.
    """
    own, others, doubtful = set[str](), set[str](), set[str]()
    tables = {Path(name).stem: path for name, path in indexes(here)}
    for drop in sorted(drops, key=lambda drop: drop.status != Status.ACCEPTED):
        if (path := tables.pop(drop.id, None)) is None:
            continue
        index = read_table(path, INDEX_SCHEMA, ["key", "person", "path"])
        mask = pc.is_in(index["person"], removal.labels_in(index["person"]))
        named = index.filter(mask)
        keys = set(named["key"].to_pylist())
        doubtful |= keys
        if drop.status == Status.REJECTED:
            rows = zip(named["path"].to_pylist(), named["key"].to_pylist(), strict=True)
            others |= {key for path, key in rows if (folder_of(drop), path) in claimed}
            continue
        theirs = set(index["key"].filter(pc.invert(mask)).to_pylist())
        own |= keys - theirs - others
        others |= theirs - keys - own
    for path in tables.values():  # of drops that no ledger has any more
        index = read_table(path, INDEX_SCHEMA, ["key", "person"])
        mask = pc.is_in(index["person"], removal.labels_in(index["person"]))
        doubtful |= set(index["key"].filter(mask).to_pylist())
    for one in sets:
        for _, path in indexes(one):
            index = read_table(path, INDEX_SCHEMA, ["key", "person"])
            mask = pc.is_in(index["person"], removal.labels_in(index["person"]))
            doubtful |= set(index["key"].filter(mask).to_pylist())
        if (row := row_of(one.files, removal)) is not None and "data/samples.parquet" in one.files:
            samples = read_table(one.files["data/samples.parquet"], SAMPLES_SCHEMA, ["key", "person_row"])
            doubtful |= set(samples["key"].filter(pc.equal(samples["person_row"], row)).to_pylist())
    others -= own
    return own | (doubtful - others), others


def _copies(here: OutputSet, drops: Iterable[Drop], removal: Removal) -> set[FileOf]:
    """The files that have an image of the person, by the indexes of their drops."""
    found, folders = set[FileOf](), {drop.id: folder_of(drop) for drop in drops}
    images = pa.array(sorted(removal.images), pa.string())
    for name, path in indexes(here):
        if folder := folders.get(Path(name).stem):
            index = read_table(path, INDEX_SCHEMA, ["key", "path"])
            paths = index["path"].filter(pc.is_in(index["key"], images))
            found |= {(folder, path) for path in paths.to_pylist()}
    return found


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
    if table := one.files.get("data/samples.parquet"):
        samples = read_table(table, SAMPLES_SCHEMA, ["key", "person_row", "shard"])
        gone = pc.is_in(samples["key"], pa.array(sorted(removal.images), pa.string()))
        if (row := row_of(one.files, removal)) is not None:
            gone = pc.or_(gone, pc.equal(samples["person_row"], row))
        found |= set(samples["shard"].filter(gone).to_pylist())
    return found


def _trained(one: OutputSet, removal: Removal) -> bool:
    """Whether a model of an output set was trained on the person."""
    return any(removal.is_label(name) for people in _people_of_models(one) for name in people)


def _people_of_models(one: OutputSet) -> Iterator[list[str]]:
    """The names in the configurations of an output set's models."""
    for stage in ("prompts", "embedding"):
        if path := one.files.get(f"models/{stage}/config.json"):
            yield read_json(path)["people"]


def _versions_trained(
    root: Path, sets: Sequence[OutputSet], removal: Removal, forgotten: Forgotten, missing: list[str]
) -> list[str]:
    """The versions that were trained on the person, or from a version that was; and those whose people cannot
    be read, which `missing` then says.
    """
    trained = list[str]()
    by_model = {values["md5"]: one for one in sets if (values := one.outs.get("models/embedding"))}
    for version in versions.all_versions(root):
        commit = versions.commit_of_version(root, version)
        assert commit  # it has a tag
        lock = git.file_at(root, commit, "dvc.lock")
        start = versions.champion_file_at(root, commit).start
        outs = outputs_of(present_lock(lock, forgotten), "dvc.lock") if lock else {}
        values = outs.get("models/embedding")
        own = by_model.get(values["md5"]) if values else None
        unknown = own is None or "models/embedding/config.json" not in own.files
        if (start and start.version in trained) or (own and _trained(own, removal)):
            trained.append(version)
        elif values and unknown:  # better one version too many than one too few
            trained.append(version)
            missing.append(f"version {version}: its people are not known; marked as if trained on the person")
    return trained


def shard_path(root: Path, store: str | None, name: str, md5: str | None, objects: Objects) -> Path | None:
    """Where an undamaged shard lies on this machine (a copy of a store's, too); None if nobody has one."""
    if has_bytes_of(name, here := root / SHARDS / name):
        return here
    copy = objects.temporary / name
    if store and not has_bytes_of(name, copy) and (listed := Store(store).find(name)):
        copy.write_bytes(Store(store).read(listed))
    if has_bytes_of(name, copy):
        return copy
    kept = objects.path(md5) if md5 else None
    return kept if kept and has_bytes_of(name, kept) else None
