"""Shards of a drop that is not finished yet: ingest that was killed goes on behind them.

A finished shard stays under its temporary name beside the others, or is in the object store; the stage's
state has its rows and vouches for it. It is taken again only with the very bytes that it had (of an object:
the size).
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from csdn.data.drops import Drop, drop_id
from csdn.data.integrity import has_bytes_of
from csdn.data.packing import PackedShard, ShardTask
from csdn.data.records import ImageRecord
from csdn.data.tables import TABLES_VERSION
from csdn.state import StageState, state_key


def drop_state(
    state: StageState,
    drop: Drop,
    settings: Mapping[str, Any],
    records: Sequence[ImageRecord],
    refused: Sequence[tuple[str, str]],
) -> StageState:
    """The state of one drop's shards; with another listing or other settings it is another one."""
    listing = drop_id(records, [record.etag for record in records], refused)
    return state.part(state_key(drop=drop.id, settings=settings, listing=listing, tables=TABLES_VERSION))


def forget_others(state: StageState, wanted: Collection[StageState]) -> None:
    """Remove what is there of drops that are finished, gone from the ledger, or read with other settings."""
    for folder in state.folder.iterdir():
        if folder.is_dir() and folder not in {part.folder for part in wanted}:
            shutil.rmtree(folder)


def save_shard(state: StageState, number: int, packed: PackedShard) -> None:
    state.part(f"{number:06d}").save(vars(packed))


def saved_shards(state: StageState, tasks: Sequence[ShardTask], readers: int) -> list[PackedShard | None]:
    """For each task its shard of an earlier run; None where there is none, or not with the bytes it had."""
    found = [_load(state, number) for number in range(len(tasks))]
    if tasks and tasks[0].store and any(found):
        from csdn.data.stored import sizes

        there = sizes(tasks[0].store)
        return [shard if shard and there.get(shard.name, 0) == shard.size else None for shard in found]

    def sound(number: int) -> bool:
        packed, folder = found[number], tasks[number].folder
        if packed is None or not packed.size:
            return packed is not None
        place = place_of(packed, folder)
        if place == folder / packed.name:  # a damaged one under the other name must not take its place
            (folder / packed.temporary).unlink(missing_ok=True)
        return place is not None

    with ThreadPoolExecutor(readers) as pool:
        right = pool.map(sound, range(len(tasks)))
        return [packed if good else None for packed, good in zip(found, right, strict=True)]


def place_of(packed: PackedShard, folder: Path) -> Path | None:
    """Where a saved shard is: under its temporary name, or already its own; None where it is damaged."""
    places = (folder / packed.temporary, folder / packed.name)
    return next((path for path in places if has_bytes_of(packed.name, path)), None)


def _load(state: StageState, number: int) -> PackedShard | None:
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
