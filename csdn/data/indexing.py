"""New drops -> shards and index, each drop alone: nothing of other drops decides its bytes.

Worker processes make the shards under temporary names. They get their names once the drop has proved to be
the one that the ledger names; the index comes last and vouches for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from csdn.data.drops import LEDGER, SHORT, Drop, Status, drop_id
from csdn.data.merge import IndexedDrop
from csdn.data.packing import PackedShard, ShardTask, cut_shards, packed_shards
from csdn.data.records import ImageRecord
from csdn.data.sources import open_source
from csdn.data.tables import INDEX_SCHEMA, REFUSED_SCHEMA, read_facts, read_table, table_of, write_table
from csdn.errors import UserError
from csdn.files import sweep

if TYPE_CHECKING:
    from csdn.params import IngestParams

Progress = Callable[[int, int], None]  # images done, images in all


@dataclass(frozen=True)
class Places:
    """Where the shards and the index of each drop are."""

    root: Path

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    def index(self, drop: Drop) -> Path:
        return self.root / "index" / f"{drop.id}.parquet"

    def refused(self, drop: Drop) -> Path:
        return self.root / "index" / f"{drop.id}.quarantine.parquet"


@dataclass(frozen=True)
class NewDrop:
    """A drop that has no index yet, as listed."""

    drop: Drop
    records: list[ImageRecord]
    refused: list[tuple[str, str]]
    ignored: int
    tasks: list[ShardTask]


def index_new_drops(
    drops: Sequence[Drop], settings: IngestParams, places: Places, processes: int, progress: Progress
) -> None:
    """Make shards and index of each drop that has none; a rejected drop is not read.

    Raises UserError at the first drop that cannot be read; those before it are kept.
    """
    new = [
        _list(drop, settings, places)
        for drop in drops
        if drop.status != Status.REJECTED and not _is_indexed(drop, settings, places)
    ]
    total, done = sum(len(entry.records) for entry in new), 0
    shards = packed_shards([task for entry in new for task in entry.tasks], processes)
    try:
        for entry in new:
            packed = []
            for _ in entry.tasks:
                packed.append(_next_shard(shards, entry.drop))
                done += len(packed[-1].hashes)
                progress(done, total)
            _keep(entry, packed, settings, places)
    finally:
        shards.close()  # ends the worker processes
        sweep(places.shards)


def _is_indexed(drop: Drop, settings: IngestParams, places: Places) -> bool:
    """Whether the drop was read before with these settings, and its shards are all there in full size."""
    if not places.index(drop).exists() or not places.refused(drop).exists():
        return False
    facts = read_facts(places.index(drop))
    return facts["settings"] == _deciding(settings) and all(
        _size(places.shards / name) == size for name, size in facts["shards"].items()
    )


def _deciding(settings: IngestParams) -> dict[str, int]:
    """The settings that decide a drop's shards and index."""
    return {"max_pixels": settings.max_pixels, "shard_megabytes": settings.shard_megabytes}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _list(drop: Drop, settings: IngestParams, places: Places) -> NewDrop:
    try:
        source = open_source(drop.address, drop.layout)
        records = source.listing()
    except UserError as error:
        raise UserError(
            f"{drop}: {error}\nIf it has moved, correct its address in {LEDGER}; "
            f"if it is gone for good: csdn reject {drop.id[:SHORT]} --reason '...'"
        ) from error
    if all(record.etag for record in records):
        _check_unchanged(drop, records, [record.etag for record in records], source.refused)
    parts = cut_shards(records, settings.shard_megabytes * 10**6)
    tasks = [
        ShardTask(
            address=drop.address,
            layout=drop.layout,
            records=part,
            folder=places.shards,
            stem=f"{drop.id[:16]}-{number:06d}",
            max_pixels=settings.max_pixels,
        )
        for number, part in enumerate(parts)
    ]
    return NewDrop(drop, records, source.refused, source.ignored, tasks)


def _check_unchanged(
    drop: Drop, records: Sequence[ImageRecord], names: Sequence[str | None], refused: list[tuple[str, str]]
) -> None:
    if drop_id(records, names, refused) != drop.id:
        raise UserError(
            f"{drop} changed since it was added: its files are not those that the ledger names. "
            "Nothing of it was kept. Restore it, or reject the entry and add the drop as it is now:\n"
            f"  csdn reject {drop.id[:SHORT]} --reason 'changed'\n"
            f"  csdn add {drop.address} --layout {drop.layout}"
        )


def _next_shard(shards: Iterator[PackedShard], drop: Drop) -> PackedShard:
    try:
        return next(shards)
    except UserError as error:
        raise UserError(f"{drop}: {error}") from error


def _keep(entry: NewDrop, packed: Sequence[PackedShard], settings: IngestParams, places: Places) -> None:
    """Give the drop's shards their names, then write what was refused, then the index."""
    hashes = [key for shard in packed for key in shard.hashes]
    names = [record.etag or key for record, key in zip(entry.records, hashes, strict=True)]
    _check_unchanged(entry.drop, entry.records, names, entry.refused)
    for task, shard in zip(entry.tasks, packed, strict=True):
        if shard.size:
            task.temporary.replace(places.shards / shard.name)
    unlisted = [(path, reason, None, None, None, None) for path, reason in entry.refused]
    refused = sorted(unlisted + [row for shard in packed for row in shard.refused], key=lambda row: row[:2])
    write_table(places.refused(entry.drop), table_of(refused, REFUSED_SCHEMA))
    images = [row for shard in packed for row in shard.images]
    facts = {
        "ignored": entry.ignored,
        "settings": _deciding(settings),
        "shards": {shard.name: shard.size for shard in packed if shard.size},
    }
    write_table(places.index(entry.drop), table_of(images, INDEX_SCHEMA), facts)


def load_index(drop: Drop, places: Places) -> IndexedDrop:
    """What was found in a drop when it was read; raises UserError where the files are damaged."""
    path = places.index(drop)
    return IndexedDrop(
        drop,
        index=read_table(path, INDEX_SCHEMA),
        refused=read_table(places.refused(drop), REFUSED_SCHEMA),
        ignored=read_facts(path)["ignored"],
    )


def remove_unnamed_shards(places: Places) -> None:
    """Remove shards that no index names: a run was killed between a drop's shards and its index."""
    indexes = set((places.root / "index").glob("*.parquet"))
    indexes -= set((places.root / "index").glob("*.quarantine.parquet"))
    named = {name for path in indexes for name in read_facts(path)["shards"]}
    for path in places.shards.glob("*.tar"):
        if path.name not in named:
            path.unlink()
