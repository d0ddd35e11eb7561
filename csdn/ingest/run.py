"""Ingest: the ledger's drops become shards, indexes, and the tables of people and samples.

Each new drop is read alone, so nothing of other drops changes its bytes: its source lists it, the worker
processes of csdn.ingest.pack make its shards under temporary names, and the state of the stage records each
finished shard, so that a killed run resumes. The shards get their final names after the drop has proved
to be the one in the ledger; the index is written last. Then csdn.ingest.merge merges the indexes of all
drops, and csdn.ingest.counts counts what was found.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds

from csdn.data.catalog import (
    INDEX_SCHEMA,
    REFUSED_SCHEMA,
    SAMPLES_SCHEMA,
    TABLES_VERSION,
    ImageRecord,
    open_table,
    read_facts,
    read_table,
    table_of,
    to_table,
    write_batches,
    write_table,
)
from csdn.data.checkpoint_store import CheckpointStore, open_state, state_key
from csdn.data.outputs import refused_in_words
from csdn.data.shards import VerifiedShards, has_bytes_of
from csdn.ingest.counts import facts_of_cameras, summary
from csdn.ingest.forgotten import FORGOTTEN, NOBODY, Forgotten, read_forgotten
from csdn.ingest.identities import SplitRule, read_aliases
from csdn.ingest.ledger import LEDGER, SHORT, Drop, Status, drop_id, list_records
from csdn.ingest.merge import IndexedDrop, bad_files, check_trainable, merge
from csdn.ingest.pack import (
    PackedShard,
    Packer,
    ShardTask,
    cut_shards,
    missing_shards,
    packed_shards,
    sizes,
)
from csdn.ingest.sources import open_source
from csdn.runtime.errors import UserError
from csdn.runtime.files import remove_temp, write_json
from csdn.runtime.process import available_cores

if TYPE_CHECKING:
    from csdn.params import DataParams, IngestParams


OnProgress = Callable[[int, int], None]  # images done, images in all
VERIFIED = "shards.json"


@dataclass(frozen=True)
class DataPaths:
    """Where this run reads and writes: `run` is part of its temporary names."""

    root: Path
    settings: IngestParams
    run: str = field(default_factory=lambda: secrets.token_hex(4))
    forgotten: Forgotten = NOBODY

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    @property
    def store(self) -> str | None:
        """The `s3://` prefix of finished shards; None: they stay in the folder `shards`."""
        return self.settings.store

    def where(self, shard: str) -> str:
        """The address of a finished shard, for messages."""
        return f"{self.store or self.shards}/{shard}"

    def index(self, drop: Drop) -> Path:
        return self.root / "index" / f"{drop.id}.parquet"

    def refused(self, drop: Drop) -> Path:
        return self.root / "index" / f"{drop.id}.quarantine.parquet"


def ingest(
    drops: Sequence[Drop],
    data: DataParams,
    settings: IngestParams,
    minimum_people: int,
    root: Path = Path("data"),
    metrics: Path = Path("metrics/ingest.json"),
    state: Path = Path(".state"),
    processes: int | None = None,
    packer: Packer = packed_shards,
    progress: OnProgress = lambda done, total: None,
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Ingest the ledger's drops; returns what is written to `metrics`.

    minimum_people: training people that a batch needs (P). processes: None means one per core; the outputs
    depend neither on it nor on `packer`, which makes the shards. `note` gets a line for each shard that had
    to be made again. Raises UserError where there is nothing to train on, before people, samples and metrics
    are replaced. The shards and indexes of good drops and the finished shards of a failed drop stay, for the
    next attempt.
    """
    paths = DataPaths(root, settings, forgotten=read_forgotten(root / FORGOTTEN.name))
    for folder in (paths.shards, root / "index"):
        folder.mkdir(parents=True, exist_ok=True)
    rule = SplitRule(data.split_salt, data.test_percent, read_aliases(data.aliases), data.trial)
    # The key does not depend on parameters, because all runs write into the same folders.
    with open_state("ingest", "ingest", state) as unfinished:
        remove_temp(root / "index")
        cores = processes or available_cores()
        verified = VerifiedShards(state / VERIFIED, cores)
        for line in index_new_drops(drops, paths, unfinished, verified, cores, packer, progress):
            note(line)
        verified.save()
        remove_unnamed_shards(paths)
        return _merge(drops, paths, rule, minimum_people, metrics)


def _merge(
    drops: Sequence[Drop], paths: DataPaths, rule: SplitRule, minimum_people: int, metrics: Path
) -> dict[str, Any]:
    """Merge the drops; write the tables and the summary, which is returned."""
    indexed = [load_index(drop, paths) for drop in drops if paths.index(drop).exists()]
    if not any(entry.index.count_rows() for entry in indexed):
        found = [(entry.drop, refused_in_words(bad_files(entry))) for entry in indexed]
        lines = [f"  {drop}, {drop.status}: {words or 'no image'}" for drop, words in found]
        raise UserError("\n".join(["nothing to train on: no drop of the ledger has a usable image", *lines]))
    tombstones = {one.row: one.name for one in paths.forgotten.people if one.row is not None}
    merged = merge(indexed, rule, paths.settings.max_bad_fraction, tombstones)
    check_trainable(merged.people, merged.held, minimum_people)
    figures = summary(indexed, merged, paths.settings.grey16_range)
    write_batches(paths.root / "samples.parquet", SAMPLES_SCHEMA, merged.samples())
    write_table(paths.root / "people.parquet", merged.people)
    write_table(paths.root / "quarantine.parquet", merged.quarantine)
    write_json(metrics, figures)
    return figures


# Which drops must be read, and which of their shards an interrupted run has finished.


@dataclass(frozen=True)
class NewDrop:
    """A listed drop that must be read; `packed` has the shard of each task, None until it is made."""

    drop: Drop
    records: list[ImageRecord]
    refused: list[tuple[str, str]]
    ignored: int
    tasks: list[ShardTask]
    packed: list[PackedShard | None]
    state: CheckpointStore


def damaged_shards(
    drops: Sequence[Drop], paths: DataPaths, verified: VerifiedShards
) -> dict[Drop, list[str]]:
    """The names of missing and damaged shards, for each drop that was read before and has some."""
    indexed = [drop for drop in drops if is_indexed(drop, paths)]
    shards = {drop: read_facts(paths.index(drop))["shards"] for drop in indexed}
    sizes = {name: size for named in shards.values() for name, size in named.items()}
    if paths.store:
        bad = set(missing_shards(paths.store, sizes, paths.shards))
    else:
        bad = {path.name for path in verified.damaged([paths.shards / name for name in sizes])}
    found = {drop: [name for name in named if name in bad] for drop, named in shards.items()}
    return {drop: names for drop, names in found.items() if names}


def is_indexed(drop: Drop, paths: DataPaths) -> bool:
    """Whether the drop was already read with these settings."""
    if not paths.index(drop).exists() or not paths.refused(drop).exists():
        return False
    read = read_facts(paths.index(drop))["settings"]
    return read == content_settings(paths.settings, "trust_suggestions" in read)


def content_settings(settings: IngestParams, suggestions: bool = False) -> dict[str, Any]:
    """The settings that change the shards or the index of a drop, without those that are off.

    suggestions: whether the drop has unconfirmed ones.
    """
    ranges = {"grey16_range": settings.grey16_range} if settings.grey16_range else {}
    trust = {"trust_suggestions": settings.trust_suggestions} if suggestions else {}
    sizes = {"max_pixels": settings.max_pixels, "shard_megabytes": settings.shard_megabytes}
    return sizes | ranges | trust


def _has_suggestions(records: Sequence[ImageRecord]) -> bool:
    return not all(record.confirmed for record in records)


def list_drop(
    drop: Drop, paths: DataPaths, state: CheckpointStore, damaged: Sequence[str], processes: int
) -> NewDrop:
    """The drop as its source lists it, with the shards that an earlier run finished; raises UserError."""
    try:
        source = open_source(drop.address, drop.layout)
        records = list_records(source, drop, paths.forgotten)
    except UserError as error:
        raise _unlisted(drop, damaged, paths, error) from error
    if all(record.etag for record in records):
        check_unchanged(drop, records, [record.etag for record in records], source.refused)
    parts = cut_shards(records, paths.settings.shard_megabytes * 10**6)
    sent = replace(drop, labels={})  # the records have them; a task is sent to another process
    tasks = [
        ShardTask(
            *(sent, part, paths.shards, f"{drop.id[:16]}-{number:06d}", paths.settings, paths.run),
            forgotten=paths.forgotten.images,
        )
        for number, part in enumerate(parts)
    ]
    # The state of this drop's shards, as it is listed now and with these settings.
    listing = drop_id(records, [record.etag for record in records], source.refused)
    settings = content_settings(paths.settings, _has_suggestions(records))
    key = {"drop": drop.id, "settings": settings, "listing": listing}
    of_drop = state.part(state_key(**key, tables=TABLES_VERSION))
    packed = saved_shards(of_drop, tasks, processes)
    return NewDrop(drop, records, source.refused, len(source.ignored), tasks, packed, of_drop)


def _unlisted(drop: Drop, damaged: Sequence[str], paths: DataPaths, error: UserError) -> UserError:
    if damaged:
        kept = "" if paths.store else f" (`dvc checkout --force {paths.shards}`)"
        return UserError(
            f"{paths.where(damaged[0])}: missing or damaged ({len(damaged)} in all), and cannot be made "
            f"again from {drop}: {error}\nBring the drop back, or the shards{kept}; "
            f"if both are gone for good: csdn reject {drop.id[:SHORT]} --reason '...'"
        )
    return UserError(
        f"{drop}: {error}\nIf it has moved, correct its address in {LEDGER}; "
        f"if it is gone for good: csdn reject {drop.id[:SHORT]} --reason '...'"
    )


def check_unchanged(
    drop: Drop, records: Sequence[ImageRecord], names: Sequence[str | None], refused: list[tuple[str, str]]
) -> None:
    if drop_id(records, names, refused) != drop.fingerprint:
        raise UserError(
            f"{drop} changed since it was added: its files are not those that the ledger names. "
            "Nothing of it was kept. Restore it, or reject the entry and add the drop as it is now:\n"
            f"  csdn reject {drop.id[:SHORT]} --reason 'changed'\n"
            f"  csdn add {drop.address} --layout {drop.layout}"
        )


# Resuming a drop that an interrupted run has not finished.
#
# Until all shards of a drop are finished, a shard keeps its temporary name, or is in the object store; the
# state of the stage has its rows. It is used again only if its hash (of an object: its size) is still the
# same.


def forget_others(state: CheckpointStore, wanted: Collection[CheckpointStore]) -> None:
    """Remove the states of drops that are finished, not in the ledger, or were read with other settings."""
    kept = {part.folder for part in wanted}
    for folder in state.folder.iterdir():
        if folder.is_dir() and folder not in kept:
            shutil.rmtree(folder)


def saved_shards(
    state: CheckpointStore, tasks: Sequence[ShardTask], readers: int
) -> list[PackedShard | None]:
    """For each task its shard of an earlier run; None where there is none, or it has changed."""
    found = [_load(state, number) for number in range(len(tasks))]
    if tasks and (store := tasks[0].settings.store) and any(found):
        stored = sizes(store)
        return [shard if shard and stored.get(shard.name, 0) == shard.size else None for shard in found]

    def is_intact(number: int) -> bool:
        packed, folder = found[number], tasks[number].folder
        if packed is None or not packed.size:
            return packed is not None
        path = shard_path(packed, folder)
        if path == folder / packed.name:  # a damaged file with the temporary name must not replace it
            (folder / packed.temporary).unlink(missing_ok=True)
        return path is not None

    with ThreadPoolExecutor(readers) as pool:
        intact = pool.map(is_intact, range(len(tasks)))
        return [packed if good else None for packed, good in zip(found, intact, strict=True)]


def shard_path(packed: PackedShard, folder: Path) -> Path | None:
    """The path of a saved shard, under its temporary or its final name; None where it is damaged."""
    candidates = (folder / packed.temporary, folder / packed.name)
    return next((path for path in candidates if has_bytes_of(packed.name, path)), None)


def _load(state: CheckpointStore, number: int) -> PackedShard | None:
    saved = state.part(f"{number:06d}").load()
    if saved is None:
        return None
    try:
        packed = PackedShard(**saved[0])
    except TypeError:  # another version of this program wrote it
        return None
    packed.images = [tuple(row) for row in packed.images]
    packed.refused = [tuple(row) for row in packed.refused]
    return packed


# Reading new drops.


def index_new_drops(
    drops: Sequence[Drop],
    paths: DataPaths,
    state: CheckpointStore,
    verified: VerifiedShards,
    processes: int,
    packer: Packer,
    progress: OnProgress,
) -> list[str]:
    """Make shards and index of each drop that is new or has damaged shards, except of rejected drops.

    Returns a line for each shard that was made again. Raises UserError at the first drop that cannot be read;
    those before it are kept, and so are the finished shards of this one.
    """
    wanted = [drop for drop in drops if drop.status != Status.REJECTED]
    damaged = damaged_shards(wanted, paths, verified)
    new = [
        list_drop(drop, paths, state, damaged.get(drop, []), processes)
        for drop in wanted
        if drop in damaged or not is_indexed(drop, paths)
    ]
    forget_others(state, [entry.state for entry in new])
    remove_temp(paths.shards, keep={shard.temporary for entry in new for shard in entry.packed if shard})
    _make(new, paths, verified, packer, processes, progress)
    return [
        f"{paths.where(name)}: was missing or damaged, and is made again from {drop}"
        for drop, names in damaged.items()
        for name in names
    ]


def _make(
    new: Sequence[NewDrop],
    paths: DataPaths,
    verified: VerifiedShards,
    packer: Packer,
    processes: int,
    progress: OnProgress,
) -> None:
    total, done = sum(len(entry.records) for entry in new), 0
    both = [pair for entry in new for pair in zip(entry.tasks, entry.packed, strict=True)]
    shards = packer([task for task, packed in both if packed is None], processes)
    try:
        for entry in new:
            for number, packed in enumerate(entry.packed):
                if packed is None:
                    packed = entry.packed[number] = _next_shard(shards, entry.drop)
                    entry.state.part(f"{number:06d}").save(vars(packed))
                done += len(packed.hashes)
                progress(done, total)
            _keep(entry, paths, verified)
    finally:
        shards.close()  # ends the worker processes


def _next_shard(shards: Generator[PackedShard], drop: Drop) -> PackedShard:
    try:
        return next(shards)
    except UserError as error:
        raise UserError(f"{drop}: {error}") from error


def _keep(entry: NewDrop, paths: DataPaths, verified: VerifiedShards) -> None:
    """Give the drop's shards their final names, then write the table of refused files, then the index."""
    packed = [shard for shard in entry.packed if shard is not None]
    hashes = [key for shard in packed for key in shard.hashes]
    names = [record.etag or key for record, key in zip(entry.records, hashes, strict=True)]
    try:
        check_unchanged(entry.drop, entry.records, names, entry.refused)
    except UserError:
        _forget(entry, paths)  # otherwise a later run of the restored drop would use these shards
        raise
    for shard in packed:
        if shard.size and not paths.store:
            if (paths.shards / shard.temporary).exists():
                (paths.shards / shard.temporary).replace(paths.shards / shard.name)
            verified.note(paths.shards / shard.name)
    unlisted = [(path, reason, None, None, None, None) for path, reason in entry.refused]
    refused = sorted(unlisted + [row for shard in packed for row in shard.refused], key=lambda row: row[:2])
    write_table(paths.refused(entry.drop), table_of(refused, REFUSED_SCHEMA))
    images = [row for shard in packed for row in shard.images]
    facts = {
        "ignored": entry.ignored,
        "settings": content_settings(paths.settings, _has_suggestions(entry.records)),
        "grey16": facts_of_cameras(row for shard in packed for row in shard.grey16),
        "shards": {shard.name: shard.size for shard in packed if shard.size},
    }
    write_table(paths.index(entry.drop), table_of(images, INDEX_SCHEMA), facts)
    _forget(entry, paths)


def _forget(entry: NewDrop, paths: DataPaths) -> None:
    """Remove the temporary shards of a drop, and their state."""
    for shard in entry.packed:
        if shard is not None:
            (paths.shards / shard.temporary).unlink(missing_ok=True)
    entry.state.remove()


def load_index(drop: Drop, paths: DataPaths) -> IndexedDrop:
    """The tables of a drop that was read before; raises UserError where the files are damaged."""
    path = paths.index(drop)
    facts = read_facts(path)
    return IndexedDrop(
        drop,
        index=_without_forgotten(open_table(path, INDEX_SCHEMA), paths.forgotten),
        refused=read_table(paths.refused(drop), REFUSED_SCHEMA),
        ignored=facts["ignored"],
        grey16=facts.get("grey16", {}),
    )


def _without_forgotten(index: ds.Dataset, forgotten: Forgotten) -> ds.Dataset:
    """An index that was made before a person was forgotten, such as in another clone, without that person."""
    if not forgotten.people:
        return index
    people = forgotten.among(to_table(index, ["person"])["person"].unique().to_pylist())
    gone = ds.field("person").isin(pa.array(sorted(people), pa.string()))
    return index.filter(~(gone | ds.field("key").isin(pa.array(sorted(forgotten.images), pa.string()))))


def remove_unnamed_shards(paths: DataPaths) -> None:
    """Remove shard files that no index names (a killed run wrote them), or that are in the store already."""
    indexes = set((paths.root / "index").glob("*.parquet"))
    indexes -= set((paths.root / "index").glob("*.quarantine.parquet"))
    named = {name: size for path in indexes for name, size in read_facts(path)["shards"].items()}
    files = list(paths.shards.glob("*.tar"))
    stored = sizes(paths.store) if paths.store and files else {}
    for path in files:
        if path.name not in named or stored.get(path.name) == named[path.name]:
            path.unlink()
