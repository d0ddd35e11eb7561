"""New drops -> shards and index, each drop alone: nothing of other drops decides its bytes.

Worker processes make the shards under temporary names; each that is finished is noted in the stage's state,
for the case of a kill (csdn.data.unfinished). They get their names once the drop has proved to be the one
that the ledger names; the index comes last and vouches for them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from csdn.data.drops import Drop, Status
from csdn.data.grey16 import facts_of_cameras
from csdn.data.integrity import Verified
from csdn.data.listing import (
    NewDrop,
    Places,
    check_unchanged,
    damaged_shards,
    deciding,
    is_indexed,
    list_drop,
)
from csdn.data.merge import IndexedDrop
from csdn.data.packing import PackedShard, Packer
from csdn.data.tables import INDEX_SCHEMA, REFUSED_SCHEMA, read_facts, read_table, table_of, write_table
from csdn.data.unfinished import forget_others, save_shard
from csdn.errors import UserError
from csdn.files import sweep

if TYPE_CHECKING:
    from csdn.params import IngestParams
    from csdn.state import StageState

Progress = Callable[[int, int], None]  # images done, images in all


def index_new_drops(
    drops: Sequence[Drop],
    settings: IngestParams,
    places: Places,
    state: StageState,
    verified: Verified,
    processes: int,
    packer: Packer,
    progress: Progress,
) -> list[str]:
    """Make shards and index of each drop that has none, or not the shards it had; a rejected one is not read.

    Returns what was made again, and why, in words. Raises UserError at the first drop that cannot be read;
    those before it are kept, and so are the finished shards of this one.
    """
    wanted = [drop for drop in drops if drop.status != Status.REJECTED]
    damaged = damaged_shards(wanted, settings, places, verified)
    new = [
        list_drop(drop, settings, places, state, damaged.get(drop, []), processes)
        for drop in wanted
        if drop in damaged or not is_indexed(drop, settings, places)
    ]
    forget_others(state, [entry.state for entry in new])
    sweep(places.shards, keep={shard.temporary for entry in new for shard in entry.packed if shard})
    _make(new, settings, places, verified, processes, packer, progress)
    return [
        f"{places.where(name)}: was missing or damaged, and is made again from {drop}"
        for drop, names in damaged.items()
        for name in names
    ]


def _make(
    new: Sequence[NewDrop],
    settings: IngestParams,
    places: Places,
    verified: Verified,
    processes: int,
    packer: Packer,
    progress: Progress,
) -> None:
    total, done = sum(len(entry.records) for entry in new), 0
    tasks = [
        task
        for entry in new
        for task, packed in zip(entry.tasks, entry.packed, strict=True)
        if packed is None
    ]
    shards = packer(tasks, processes)
    try:
        for entry in new:
            for number in range(len(entry.tasks)):
                if entry.packed[number] is None:
                    entry.packed[number] = _next_shard(shards, entry.drop)
                    save_shard(entry.state, number, entry.packed[number])
                done += len(entry.packed[number].hashes)
                progress(done, total)
            _keep(entry, settings, places, verified)
    finally:
        shards.close()  # ends the worker processes


def _next_shard(shards: Iterator[PackedShard], drop: Drop) -> PackedShard:
    try:
        return next(shards)
    except UserError as error:
        raise UserError(f"{drop}: {error}") from error


def _keep(entry: NewDrop, settings: IngestParams, places: Places, verified: Verified) -> None:
    """Give the drop's shards their names, then write what was refused, then the index."""
    packed = [shard for shard in entry.packed if shard is not None]
    hashes = [key for shard in packed for key in shard.hashes]
    names = [record.etag or key for record, key in zip(entry.records, hashes, strict=True)]
    try:
        check_unchanged(entry.drop, entry.records, names, entry.refused)
    except UserError:
        _forget(entry, places)  # or it would be taken again when the drop is as it was
        raise
    for shard in packed:
        if shard.size and not places.store:
            if (places.shards / shard.temporary).exists():
                (places.shards / shard.temporary).replace(places.shards / shard.name)
            verified.note(places.shards / shard.name)
    unlisted = [(path, reason, None, None, None, None) for path, reason in entry.refused]
    refused = sorted(unlisted + [row for shard in packed for row in shard.refused], key=lambda row: row[:2])
    write_table(places.refused(entry.drop), table_of(refused, REFUSED_SCHEMA))
    images = [row for shard in packed for row in shard.images]
    facts = {
        "ignored": entry.ignored,
        "settings": deciding(settings),
        "grey16": facts_of_cameras(row for shard in packed for row in shard.grey16),
        "shards": {shard.name: shard.size for shard in packed if shard.size},
    }
    write_table(places.index(entry.drop), table_of(images, INDEX_SCHEMA), facts)
    _forget(entry, places)


def _forget(entry: NewDrop, places: Places) -> None:
    """Remove what is left of a drop's unfinished shards."""
    for shard in entry.packed:
        if shard is not None:
            (places.shards / shard.temporary).unlink(missing_ok=True)
    shutil.rmtree(entry.state.folder)


def load_index(drop: Drop, places: Places) -> IndexedDrop:
    """What was found in a drop when it was read; raises UserError where the files are damaged."""
    path = places.index(drop)
    facts = read_facts(path)
    return IndexedDrop(
        drop,
        index=read_table(path, INDEX_SCHEMA),
        refused=read_table(places.refused(drop), REFUSED_SCHEMA),
        ignored=facts["ignored"],
        grey16=facts.get("grey16", {}),
    )


def remove_unnamed_shards(places: Places) -> None:
    """Remove shards that no index names (the run that wrote them was killed), or that are in the store."""
    indexes = set((places.root / "index").glob("*.parquet"))
    indexes -= set((places.root / "index").glob("*.quarantine.parquet"))
    named = {name: size for path in indexes for name, size in read_facts(path)["shards"].items()}
    files = list(places.shards.glob("*.tar"))
    stored: Mapping[str, int] = {}
    if places.store and files:
        from csdn.data.stored import sizes  # it brings a client, which few need

        stored = sizes(places.store)
    for path in files:
        if path.name not in named or stored.get(path.name) == named[path.name]:
            path.unlink()
