"""Ingest: the ledger's drops become shards, indexes, and the tables of people and samples.

Each new drop is read alone, so nothing of other drops changes its bytes: csdn.ingest.listing lists it, the
worker processes of csdn.ingest.pack make its shards under temporary names, and the state of the stage records
each finished shard, so that a killed run resumes. The shards get their final names after the drop has proved
to be the one in the ledger; the index is written last. Then csdn.ingest.merge merges the indexes of all
drops, and csdn.ingest.counts counts what was found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from csdn.data.catalog import INDEX_SCHEMA, REFUSED_SCHEMA, read_facts, read_table, table_of, write_table
from csdn.data.shards import VerifiedShards
from csdn.data.state import open_state
from csdn.ingest.counts import summary
from csdn.ingest.grey16 import facts_of_cameras
from csdn.ingest.identities import SplitRule, read_aliases
from csdn.ingest.ledger import SHORT, Drop, Status
from csdn.ingest.listing import (
    DataPaths,
    NewDrop,
    check_unchanged,
    content_settings,
    damaged_shards,
    forget_others,
    is_indexed,
    list_drop,
    save_shard,
)
from csdn.ingest.merge import HeldDrop, IndexedDrop, bad_files, merge
from csdn.ingest.pack import PackedShard, Packer, packed_shards, sizes
from csdn.runtime.errors import UserError
from csdn.runtime.files import remove_temp, write_json
from csdn.runtime.process import available_cores
from csdn.runtime.sanitize import refused_in_words

if TYPE_CHECKING:
    from csdn.data.state import CheckpointStore
    from csdn.params import DataParams, IngestParams


OnProgress = Callable[[int, int], None]  # images done, images in all
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
    paths = DataPaths(root, settings.store)
    for folder in (paths.shards, root / "index"):
        folder.mkdir(parents=True, exist_ok=True)
    rule = SplitRule(data.split_salt, data.test_percent, read_aliases(data.aliases), data.trial)
    # The key does not depend on parameters, because all runs write into the same folders.
    with open_state("ingest", "ingest", state) as unfinished:
        remove_temp(root / "index")
        cores = processes or available_cores()
        verified = VerifiedShards(state / VERIFIED, cores)
        for line in index_new_drops(drops, settings, paths, unfinished, verified, cores, packer, progress):
            note(line)
        verified.save()
        remove_unnamed_shards(paths)
        return _merge(drops, paths, rule, settings, minimum_people, metrics)


def _merge(
    drops: Sequence[Drop],
    paths: DataPaths,
    rule: SplitRule,
    settings: IngestParams,
    minimum_people: int,
    metrics: Path,
) -> dict[str, Any]:
    """Merge the drops; write the tables and the summary, which is returned."""
    indexed = [load_index(drop, paths) for drop in drops if paths.index(drop).exists()]
    if not any(entry.index.num_rows for entry in indexed):
        found = [(entry.drop, refused_in_words(bad_files(entry))) for entry in indexed]
        lines = [f"  {drop}, {drop.status}: {words or 'no image'}" for drop, words in found]
        raise UserError("\n".join(["nothing to train on: no drop of the ledger has a usable image", *lines]))
    merged = merge(indexed, rule, settings.max_bad_fraction)
    check_trainable(merged.people, merged.held, minimum_people)
    figures = summary(indexed, merged, settings.grey16_range)
    write_table(paths.root / "people.parquet", merged.people)
    write_table(paths.root / "samples.parquet", merged.samples)
    write_table(paths.root / "quarantine.parquet", merged.quarantine)
    write_json(metrics, figures)
    return figures


# Reading new drops.


def index_new_drops(
    drops: Sequence[Drop],
    settings: IngestParams,
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
    damaged = damaged_shards(wanted, settings, paths, verified)
    new = [
        list_drop(drop, settings, paths, state, damaged.get(drop, []), processes)
        for drop in wanted
        if drop in damaged or not is_indexed(drop, settings, paths)
    ]
    forget_others(state, [entry.state for entry in new])
    remove_temp(paths.shards, keep={shard.temporary for entry in new for shard in entry.packed if shard})
    _make(new, settings, paths, verified, processes, packer, progress)
    return [
        f"{paths.where(name)}: was missing or damaged, and is made again from {drop}"
        for drop, names in damaged.items()
        for name in names
    ]


def _make(
    new: Sequence[NewDrop],
    settings: IngestParams,
    paths: DataPaths,
    verified: VerifiedShards,
    processes: int,
    packer: Packer,
    progress: OnProgress,
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
            _keep(entry, settings, paths, verified)
    finally:
        shards.close()  # ends the worker processes


def _next_shard(shards: Iterator[PackedShard], drop: Drop) -> PackedShard:
    try:
        return next(shards)
    except UserError as error:
        raise UserError(f"{drop}: {error}") from error


def _keep(entry: NewDrop, settings: IngestParams, paths: DataPaths, verified: VerifiedShards) -> None:
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
        "settings": content_settings(settings),
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
        index=read_table(path, INDEX_SCHEMA),
        refused=read_table(paths.refused(drop), REFUSED_SCHEMA),
        ignored=facts["ignored"],
        grey16=facts.get("grey16", {}),
    )


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


# Checking that training and testing are possible, before hours are spent.


def check_trainable(people: pa.Table, held: Sequence[HeldDrop], minimum_people: int) -> None:
    """Raise UserError if the merged data cannot be trained on or tested with; the error says what is missing.

    people: the table of people.parquet; minimum_people: the people of a batch (P).
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
            f"a batch needs {minimum_people} (embedding.identities_per_batch); "
            f"{status['waiting']} more have one modality only. Add images of them, or lower the number"
        )
    if not status["test"]:
        return (
            "nothing to test with: nobody is a test person (the highest buckets, data.test_percent); "
            "add people or raise data.test_percent"
        )
    return None
