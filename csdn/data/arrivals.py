"""Drops that arrive: what is at an address, and is it complete?"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from csdn.data.drops import Drop, content_name, drop_id
from csdn.data.records import ImageRecord
from csdn.data.sources import Source, open_source
from csdn.data.sources.cameras import MANIFESTS, MARKER
from csdn.data.sources.tree import RemoteTree
from csdn.errors import UserError

# Hashing and waiting for a store both leave Python's lock.
READERS = 8


def examine(address: str, layout: str) -> tuple[Drop, int]:
    """The ledger entry of the drop at `address`, and how many images it lists.

    Raises UserError, also where the drop is not complete yet.
    """
    source = open_source(address, layout)
    records = source.listing()
    if not source.complete:
        raise UserError(
            f"{address}: not complete: there is no {MARKER}, {' or '.join(MANIFESTS)}. "
            f"When all files are there, finish the drop with: touch {address.rstrip('/')}/{MARKER}"
        )
    return Drop(id_of(source, records, address), address, layout), len(records)


def id_of(source: Source, records: Sequence[ImageRecord], address: str) -> str:
    """The id of the drop that `source` has listed as `records`; raises UserError."""
    try:
        with ThreadPoolExecutor(READERS) as readers:
            names = list(readers.map(lambda record: content_name(source, record), records))
    except OSError as error:
        raise UserError(f"{address}: cannot be read: {error}") from error
    return drop_id(records, names, source.refused)


def sub_folders(place: str) -> list[str]:
    """Addresses of the folders directly below a landing place, sorted. Raises UserError."""
    if "://" in place:
        return RemoteTree(place).sub_folders()
    root = Path(place)
    if not root.is_dir():
        raise UserError(f"{place}: no such folder; params.yaml names it (ingest.landing)")
    folders = (path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(map(str, folders))
