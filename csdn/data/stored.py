"""Shards that ingest puts into an object store (`ingest.store`): objects by their content, never rewritten.

Nothing is ever removed there: other clones and older commits may name the same objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from csdn.data.integrity import has_bytes_of
from csdn.data.store import Store

_UPLOADS = 4  # at a time


def sizes(address: str) -> dict[str, int]:
    """Name -> bytes of every object below an `s3://` prefix, by one listing. Raises UserError."""
    return {found.name: found.size for found in store_at(address).objects()}


def put_shard(address: str, name: str, path: Path, size: int) -> None:
    """Store a finished shard of `size` bytes; one that is there is not sent again."""
    store = store_at(address)
    if store.size(name) != size:
        store.put(name, path, "application/x-tar")


def missing_shards(address: str, wanted: Mapping[str, int], folder: Path) -> list[str]:
    """The names in `wanted` (name -> bytes) that the store has not whole, and cannot get from `folder`.

    A shard that still lies there, of the time before there was a store, is put into it; the file stays.
    """
    there = sizes(address)
    lacking = [name for name, size in wanted.items() if there.get(name) != size]
    here = [name for name in lacking if has_bytes_of(name, folder / name)]
    _put_all(address, here, folder, wanted)
    return [name for name in lacking if name not in set(here)]


def _put_all(address: str, names: Sequence[str], folder: Path, wanted: Mapping[str, int]) -> None:
    with ThreadPoolExecutor(_UPLOADS) as threads:
        for _ in threads.map(lambda name: put_shard(address, name, folder / name, wanted[name]), names):
            pass


@cache
def store_at(address: str) -> Store:
    """One store for all shards of a process: it holds connections."""
    return Store(address)
