"""The ledger -> shards, index, people, samples. Each drop is read once in its life.

First each new drop alone becomes shards and an index (csdn.data.indexing); then all indexes are laid together
(csdn.data.merge).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csdn.data.drops import Drop
from csdn.data.indexing import Progress, index_new_drops, load_index, remove_unnamed_shards
from csdn.data.integrity import Verified
from csdn.data.listing import Places
from csdn.data.merge import bad_files, merge
from csdn.data.packing import Packer, packed_shards
from csdn.data.people import Identity, read_aliases
from csdn.data.refusals import refused_in_words
from csdn.data.summary import summary
from csdn.data.tables import write_table
from csdn.data.trainable import check_trainable
from csdn.errors import UserError
from csdn.files import sweep, write_json
from csdn.process import available_cores
from csdn.state import open_state

if TYPE_CHECKING:
    from csdn.params import DataParams, IngestParams

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
    identity = Identity(data.salt, data.test_percent, read_aliases(data.aliases), data.trial)
    # One key whatever the parameters: all runs write into the same folders.
    with open_state("ingest", "ingest", state) as unfinished:
        sweep(root / "index")
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
    identity: Identity,
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
