"""Which drops are to be read: the new ones, and those whose shards are not what they were."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csdn.data.drops import LEDGER, SHORT, Drop, drop_id
from csdn.data.integrity import Verified
from csdn.data.packing import PackedShard, ShardTask, cut_shards
from csdn.data.records import ImageRecord
from csdn.data.sources import open_source
from csdn.data.tables import read_facts
from csdn.data.unfinished import drop_state, saved_shards
from csdn.errors import UserError

if TYPE_CHECKING:
    from csdn.params import IngestParams
    from csdn.state import StageState


@dataclass(frozen=True)
class Places:
    """Where the shards and the index of each drop are; `run` is in the temporary names of this run.

    store: the `s3://` prefix of finished shards; None: they stay in the folder `shards`.
    """

    root: Path
    store: str | None = None
    run: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    def where(self, shard: str) -> str:
        """A finished shard's place, for a message."""
        return f"{self.store or self.shards}/{shard}"

    def index(self, drop: Drop) -> Path:
        return self.root / "index" / f"{drop.id}.parquet"

    def refused(self, drop: Drop) -> Path:
        return self.root / "index" / f"{drop.id}.quarantine.parquet"


@dataclass(frozen=True)
class NewDrop:
    """A drop to be read, as listed; `packed` has a shard for each task, None until it is made."""

    drop: Drop
    records: list[ImageRecord]
    refused: list[tuple[str, str]]
    ignored: int
    tasks: list[ShardTask]
    packed: list[PackedShard | None]
    state: StageState


def damaged_shards(
    drops: Sequence[Drop], settings: IngestParams, places: Places, verified: Verified
) -> dict[Drop, list[str]]:
    """The shards that are missing, or have not the bytes that they had, of each drop that was read before."""
    indexed = [drop for drop in drops if is_indexed(drop, settings, places)]
    shards = {drop: read_facts(places.index(drop))["shards"] for drop in indexed}
    sizes = {name: size for named in shards.values() for name, size in named.items()}
    bad = _damaged(sizes, places, verified)
    found = {drop: [name for name in named if name in bad] for drop, named in shards.items()}
    return {drop: names for drop, names in found.items() if names}


def _damaged(sizes: Mapping[str, int], places: Places, verified: Verified) -> set[str]:
    if places.store is None:
        return {path.name for path in verified.damaged([places.shards / name for name in sizes])}
    from csdn.data.stored import missing_shards  # it brings a client, which few need

    return set(missing_shards(places.store, sizes, places.shards))


def is_indexed(drop: Drop, settings: IngestParams, places: Places) -> bool:
    """Whether the drop was read before with these settings."""
    if not places.index(drop).exists() or not places.refused(drop).exists():
        return False
    return read_facts(places.index(drop))["settings"] == deciding(settings)


def deciding(settings: IngestParams) -> dict[str, Any]:
    """The settings that decide a drop's shards and index; those that are off are left out."""
    ranges = {"grey16_range": settings.grey16_range} if settings.grey16_range else {}
    return {"max_pixels": settings.max_pixels, "shard_megabytes": settings.shard_megabytes} | ranges


def list_drop(
    drop: Drop,
    settings: IngestParams,
    places: Places,
    state: StageState,
    damaged: Sequence[str],
    processes: int,
) -> NewDrop:
    """The drop as its source lists it, with the shards that an earlier run finished; raises UserError."""
    try:
        source = open_source(drop.address, drop.layout)
        records = source.listing()
    except UserError as error:
        raise _unlisted(drop, damaged, places, error) from error
    if all(record.etag for record in records):
        check_unchanged(drop, records, [record.etag for record in records], source.refused)
    parts = cut_shards(records, settings.shard_megabytes * 10**6)
    tasks = [
        ShardTask(
            address=drop.address,
            layout=drop.layout,
            records=part,
            folder=places.shards,
            stem=f"{drop.id[:16]}-{number:06d}",
            max_pixels=settings.max_pixels,
            grey16_range=settings.grey16_range,
            run=places.run,
            store=places.store,
        )
        for number, part in enumerate(parts)
    ]
    of_drop = drop_state(state, drop, deciding(settings), records, source.refused)
    packed = saved_shards(of_drop, tasks, processes)
    return NewDrop(drop, records, source.refused, len(source.ignored), tasks, packed, of_drop)


def _unlisted(drop: Drop, damaged: Sequence[str], places: Places, error: UserError) -> UserError:
    if damaged:
        kept = "" if places.store else f" (`dvc checkout --force {places.shards}`)"
        return UserError(
            f"{places.where(damaged[0])}: missing or damaged ({len(damaged)} in all), and cannot be made "
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
