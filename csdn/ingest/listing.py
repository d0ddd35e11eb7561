"""Listing: which drops must be read, and which of their shards an interrupted run has finished.

A drop of the ledger is read if it is new, or one of its shards is missing or damaged. `list_drop` cuts its
listing into the tasks of csdn.ingest.pack; csdn.ingest.run executes them and saves each finished shard here.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csdn.data.catalog import TABLES_VERSION, ImageRecord, read_facts
from csdn.data.shards import VerifiedShards, has_bytes_of
from csdn.data.state import CheckpointStore, state_key
from csdn.ingest.ledger import LEDGER, SHORT, Drop, drop_id
from csdn.ingest.pack import PackedShard, ShardTask, cut_shards, missing_shards, sizes
from csdn.ingest.sources import open_source
from csdn.runtime.errors import UserError

if TYPE_CHECKING:
    from csdn.params import IngestParams


@dataclass(frozen=True)
class DataPaths:
    """The paths of shards and indexes; `run` is part of the temporary names of this run.

    store: the `s3://` prefix of finished shards; None: they stay in the folder `shards`.
    """

    root: Path
    store: str | None = None
    run: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    def where(self, shard: str) -> str:
        """The address of a finished shard, for messages."""
        return f"{self.store or self.shards}/{shard}"

    def index(self, drop: Drop) -> Path:
        return self.root / "index" / f"{drop.id}.parquet"

    def refused(self, drop: Drop) -> Path:
        return self.root / "index" / f"{drop.id}.quarantine.parquet"


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
    drops: Sequence[Drop], settings: IngestParams, paths: DataPaths, verified: VerifiedShards
) -> dict[Drop, list[str]]:
    """The names of missing and damaged shards, for each drop that was read before and has some."""
    indexed = [drop for drop in drops if is_indexed(drop, settings, paths)]
    shards = {drop: read_facts(paths.index(drop))["shards"] for drop in indexed}
    sizes = {name: size for named in shards.values() for name, size in named.items()}
    bad = _damaged(sizes, paths, verified)
    found = {drop: [name for name in named if name in bad] for drop, named in shards.items()}
    return {drop: names for drop, names in found.items() if names}


def _damaged(sizes: Mapping[str, int], paths: DataPaths, verified: VerifiedShards) -> set[str]:
    if paths.store is None:
        return {path.name for path in verified.damaged([paths.shards / name for name in sizes])}
    return set(missing_shards(paths.store, sizes, paths.shards))


def is_indexed(drop: Drop, settings: IngestParams, paths: DataPaths) -> bool:
    """Whether the drop was already read with these settings."""
    if not paths.index(drop).exists() or not paths.refused(drop).exists():
        return False
    return read_facts(paths.index(drop))["settings"] == content_settings(settings)


def content_settings(settings: IngestParams) -> dict[str, Any]:
    """The settings that change the shards or the index of a drop, without those that are off."""
    ranges = {"grey16_range": settings.grey16_range} if settings.grey16_range else {}
    return {"max_pixels": settings.max_pixels, "shard_megabytes": settings.shard_megabytes} | ranges


def list_drop(
    drop: Drop,
    settings: IngestParams,
    paths: DataPaths,
    state: CheckpointStore,
    damaged: Sequence[str],
    processes: int,
) -> NewDrop:
    """The drop as its source lists it, with the shards that an earlier run finished; raises UserError."""
    try:
        source = open_source(drop.address, drop.layout)
        records = source.listing()
    except UserError as error:
        raise _unlisted(drop, damaged, paths, error) from error
    if all(record.etag for record in records):
        check_unchanged(drop, records, [record.etag for record in records], source.refused)
    parts = cut_shards(records, settings.shard_megabytes * 10**6)
    tasks = [
        ShardTask(
            address=drop.address,
            layout=drop.layout,
            records=part,
            folder=paths.shards,
            stem=f"{drop.id[:16]}-{number:06d}",
            max_pixels=settings.max_pixels,
            grey16_range=settings.grey16_range,
            run=paths.run,
            store=paths.store,
        )
        for number, part in enumerate(parts)
    ]
    of_drop = drop_state(state, drop, content_settings(settings), records, source.refused)
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
    if drop_id(records, names, refused) != drop.id:
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


def drop_state(
    state: CheckpointStore,
    drop: Drop,
    settings: Mapping[str, Any],
    records: Sequence[ImageRecord],
    refused: Sequence[tuple[str, str]],
) -> CheckpointStore:
    """The state of the shards of one drop; its key contains the listing and the settings."""
    listing = drop_id(records, [record.etag for record in records], refused)
    return state.part(state_key(drop=drop.id, settings=settings, listing=listing, tables=TABLES_VERSION))


def forget_others(state: CheckpointStore, wanted: Collection[CheckpointStore]) -> None:
    """Remove the states of drops that are finished, not in the ledger, or were read with other settings."""
    for folder in state.folder.iterdir():
        if folder.is_dir() and folder not in {part.folder for part in wanted}:
            shutil.rmtree(folder)


def save_shard(state: CheckpointStore, number: int, packed: PackedShard) -> None:
    state.part(f"{number:06d}").save(vars(packed))


def saved_shards(
    state: CheckpointStore, tasks: Sequence[ShardTask], readers: int
) -> list[PackedShard | None]:
    """For each task its shard of an earlier run; None where there is none, or it has changed."""
    found = [_load(state, number) for number in range(len(tasks))]
    if tasks and tasks[0].store and any(found):
        stored = sizes(tasks[0].store)
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
