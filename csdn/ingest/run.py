"""New drops -> shards and index, each drop alone: nothing of other drops decides its bytes.

Worker processes make the shards under temporary names; each that is finished is noted in the stage's state,
for the case of a kill (csdn.ingest.listing). They get their names once the drop has proved to be the one
that the ledger names; the index comes last and vouches for them.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from csdn.data.catalog import INDEX_SCHEMA, REFUSED_SCHEMA, read_facts, read_table, table_of, write_table
from csdn.data.shards import Verified
from csdn.data.state import open_state
from csdn.ingest.counts import summary
from csdn.ingest.grey16 import facts_of_cameras
from csdn.ingest.identities import SplitRule, read_aliases
from csdn.ingest.ledger import SHORT, Drop, Status
from csdn.ingest.listing import (
    NewDrop,
    Places,
    check_unchanged,
    damaged_shards,
    deciding,
    forget_others,
    is_indexed,
    list_drop,
    save_shard,
)
from csdn.ingest.merge import HeldDrop, IndexedDrop, bad_files, merge
from csdn.ingest.pack import PackedShard, Packer, packed_shards
from csdn.runtime.errors import UserError
from csdn.runtime.files import remove_temp, write_json
from csdn.runtime.process import available_cores
from csdn.runtime.sanitize import refused_in_words

if TYPE_CHECKING:
    from csdn.data.state import StageState
    from csdn.params import DataParams, IngestParams


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
    remove_temp(places.shards, keep={shard.temporary for entry in new for shard in entry.packed if shard})
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
        from csdn.ingest.pack import sizes  # it brings a client, which few need

        stored = sizes(places.store)
    for path in files:
        if path.name not in named or stored.get(path.name) == named[path.name]:
            path.unlink()


# Whether there is something to train on and to test with: asked before hours are spent.


def check_trainable(people: pa.Table, held: Sequence[HeldDrop], minimum_people: int) -> None:
    """Raise UserError naming what the merged data lacks.

    `people` is people.parquet's table; `minimum_people` are the people of a batch (P).
    """
    problem = _problem(people, minimum_people)
    if problem is None:
        return
    notes = [
        f"  held, and so left out: drop {one.drop.id[:SHORT]} ({one.drop.address}), {one.bad} of "
        f"{one.images} images bad: {refused_in_words(one.refused)}; take it as it is with: "
        f"csdn accept {one.drop.id[:SHORT]} --reason '...'"
        for one in held
    ]
    raise UserError("\n".join([problem, *notes]))


def _problem(people: pa.Table, minimum_people: int) -> str | None:
    for modality in ("visible", "infrared"):
        if not sum(people[modality].to_pylist()):
            return (
                f"nothing to train on: there is no usable {modality} image in any drop; "
                "a cross-modality model needs visible and infrared images of the same people"
            )
    status = Counter(people["status"].to_pylist())
    if status["train"] < minimum_people:
        return (
            f"nothing to train on: {status['train']} training people have visible and infrared images, "
            f"a batch needs {minimum_people} (embedding.identities_per_batch); {status['waiting']} more have one modality "
            "only. Add images of them, or lower embedding.identities_per_batch"
        )
    if not status["test"]:
        return (
            "nothing to test with: nobody is a test person (the highest buckets, data.test_percent); "
            "add people or raise data.test_percent"
        )
    return None


# The ledger -> shards, index, people, samples. Each drop is read once in its life.
#
# First each new drop alone becomes shards and an index (csdn.ingest.run); then all indexes are laid together
# (csdn.ingest.merge).


VERIFIED = "shards.json"


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
    progress: Progress = lambda done, total: None,
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Ingest the ledger's drops; returns what is written to `metrics`.

    `minimum_people`: training people that a batch needs (P). `processes`: None takes one per core; the
    outputs do not depend on it, nor on `packer`, which makes the shards. `note` is told of shards that had to
    be made again. Raises UserError where there is nothing to train on, before people, samples and metrics are
    replaced; shards and indexes of good drops stay, for the next attempt, and finished shards of the drop
    that failed.
    """
    places = Places(root, settings.store)
    for folder in (places.shards, root / "index"):
        folder.mkdir(parents=True, exist_ok=True)
    identity = SplitRule(data.split_salt, data.test_percent, read_aliases(data.aliases), data.trial)
    # One key whatever the parameters: all runs write into the same folders.
    with open_state("ingest", "ingest", state) as unfinished:
        remove_temp(root / "index")
        cores = processes or available_cores()
        verified = Verified(state / VERIFIED, cores)
        for line in index_new_drops(drops, settings, places, unfinished, verified, cores, packer, progress):
            note(line)
        verified.save()
        remove_unnamed_shards(places)
        return _merge(drops, places, identity, settings, minimum_people, metrics)


def _merge(
    drops: Sequence[Drop],
    places: Places,
    identity: SplitRule,
    settings: IngestParams,
    minimum_people: int,
    metrics: Path,
) -> dict[str, Any]:
    """Lay the drops together and write the tables and the figures, which are returned."""
    indexed = [load_index(drop, places) for drop in drops if places.index(drop).exists()]
    if not any(entry.index.num_rows for entry in indexed):
        found = [(entry.drop, refused_in_words(bad_files(entry))) for entry in indexed]
        lines = [f"  {drop}, {drop.status}: {words or 'no image'}" for drop, words in found]
        raise UserError("\n".join(["nothing to train on: no drop of the ledger has a usable image", *lines]))
    merged = merge(indexed, identity, settings.max_bad_fraction)
    check_trainable(merged.people, merged.held, minimum_people)
    figures = summary(indexed, merged, settings.grey16_range)
    write_table(places.root / "people.parquet", merged.people)
    write_table(places.root / "samples.parquet", merged.samples)
    write_table(places.root / "quarantine.parquet", merged.quarantine)
    write_json(metrics, figures)
    return figures
