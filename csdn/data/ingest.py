"""The ledger -> shards, index, people, samples. Each drop is read once in its life.

First each new drop alone becomes shards and an index (csdn.data.indexing); then all indexes are laid together
(csdn.data.merge).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csdn.data.drops import Drop
from csdn.data.indexing import Places, Progress, index_new_drops, load_index, remove_unnamed_shards
from csdn.data.merge import merge
from csdn.data.people import Identity, read_aliases
from csdn.data.summary import summary
from csdn.data.tables import write_table
from csdn.data.trainable import check_trainable
from csdn.errors import UserError
from csdn.files import sweep, write_json
from csdn.process import available_cores

if TYPE_CHECKING:
    from csdn.params import DataParams, IngestParams


def ingest(
    drops: Sequence[Drop],
    data: DataParams,
    settings: IngestParams,
    minimum_people: int,
    root: Path = Path("data"),
    metrics: Path = Path("metrics/ingest.json"),
    processes: int | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Ingest the ledger's drops; returns what is written to `metrics`.

    `minimum_people`: training people that a batch needs (P). `processes`: None takes one per core; the
    outputs do not depend on it. Raises UserError where there is nothing to train on, before people, samples
    and metrics are replaced; shards and indexes of good drops stay, for the next attempt.
    """
    places = Places(root)
    for folder in (places.shards, root / "index"):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
    identity = Identity(data.salt, data.test_percent, read_aliases(data.aliases), data.trial)
    index_new_drops(drops, settings, places, processes or available_cores(), progress)
    remove_unnamed_shards(places)
    indexed = [load_index(drop, places) for drop in drops if places.index(drop).exists()]
    if not any(entry.index.num_rows for entry in indexed):
        raise UserError("nothing to train on: no drop of the ledger has a usable image; see `csdn drops`")
    merged = merge(indexed, identity, settings.max_bad_fraction)
    check_trainable(merged.people, merged.held, minimum_people)
    figures = summary(indexed, merged)
    write_table(root / "people.parquet", merged.people)
    write_table(root / "samples.parquet", merged.samples)
    write_table(root / "quarantine.parquet", merged.quarantine)
    write_json(metrics, figures)
    return figures
