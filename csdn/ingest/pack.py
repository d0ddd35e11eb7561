"""Records -> shards: read, hash, prove good, write; in worker processes, one shard at a time in each.

Kept light: a worker process imports this and the source, no tables and no torch.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from csdn.data.catalog import ImageRecord
from csdn.data.images import BadImage, extension_of, grey16, probe
from csdn.data.labels import NO_LABEL, canonical_label, label_fault
from csdn.data.shards import ShardWriter, has_bytes_of
from csdn.data.storage import PendingRead, Store, prefetch
from csdn.ingest.grey16 import Range, extremes, png_of_range, range_of
from csdn.ingest.sources import Source, open_source
from csdn.runtime.errors import UserError, explain_os_error
from csdn.runtime.files import temp_path, with_filename
from csdn.runtime.process import quiet_tracker, set_parent_death_signal

# A shard also ends after so many images, so that small ones are spread over all cores.
SHARD_IMAGES = 1000
STORE_READERS = 8  # of each process: an object store takes its time to answer


@dataclass(frozen=True)
class ShardTask:
    """One shard to make of a drop: `stem` begins its name, in `folder`.

    `run` stands in the temporary name: what another run left never meets what this one writes. `store`: the
    `s3://` prefix that the finished shard goes to; None: it stays under its temporary name.
    """

    address: str
    layout: str
    records: Sequence[ImageRecord]
    folder: Path
    stem: str
    max_pixels: int
    grey16_range: Mapping[str, Range] = field(default_factory=dict)
    run: str = ""
    store: str | None = None

    @property
    def temporary(self) -> Path:
        return temp_path(self.folder / f"{self.stem}-{self.run}")


@dataclass
class PackedShard:
    """A shard under its temporary name, and the rows that speak of it (tuples as in csdn.data.catalog)."""

    name: str
    temporary: str  # its name until it gets its own
    size: int = 0  # bytes of the tar; 0: no image was good, no tar is there
    images: list[tuple[Any, ...]] = field(default_factory=list)
    refused: list[tuple[Any, ...]] = field(default_factory=list)
    hashes: list[str | None] = field(default_factory=list)  # of every record, in order
    grey16: list[tuple[str, int, int]] = field(default_factory=list)  # camera and extremes of 16-bit images


def cut_shards(records: Sequence[ImageRecord], shard_bytes: int) -> list[Sequence[ImageRecord]]:
    """Cut a listing into shards of at most `shard_bytes` and SHARD_IMAGES, by sizes known before reading.

    An image larger than a shard gets one of its own.
    """
    starts, taken = [0], 0
    for n, record in enumerate(records):
        if n > starts[-1] and (taken + record.size > shard_bytes or n - starts[-1] == SHARD_IMAGES):
            starts.append(n)
            taken = 0
        taken += record.size
    return [records[start:end] for start, end in zip(starts, [*starts[1:], len(records)], strict=True)]


# Makes the shards of tasks, in order, with as many processes where they are this machine's.
Packer = Callable[[Sequence[ShardTask], int], Iterator[PackedShard]]


def packed_shards(tasks: Sequence[ShardTask], processes: int) -> Iterator[PackedShard]:
    """The tasks' shards in order, made by that many processes; the bytes do not depend on how many.

    Raises UserError. Closing the iterator ends the processes.
    """
    processes = min(processes, len(tasks))
    if processes < 2:
        yield from map(pack, tasks)
        return
    # Not forked: the parent may have threads. Workers import this module, no tables and no torch.
    spawn = multiprocessing.get_context("spawn")
    with quiet_tracker(), ProcessPoolExecutor(processes, mp_context=spawn, initializer=_start_worker) as pool:
        try:
            yield from pool.map(pack, tasks)
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed (out of memory?). The shards that were finished are kept: "
                "free some memory, or lower ingest.max_pixels, and run the command again to go on"
            ) from None


def _start_worker() -> None:
    set_parent_death_signal()
    if os.getppid() != multiprocessing.parent_process().pid:
        os._exit(1)  # it died while this process was starting: nobody would ever give it work or end it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered once, by the parent


def pack(task: ShardTask) -> PackedShard:
    """Make one shard; what cannot be used is refused with a reason, the rest goes on. Raises UserError."""
    packed = PackedShard(name="", temporary=task.temporary.name)
    try:
        writer = _write(task, packed)
        if not packed.images:
            task.temporary.unlink()
            return packed
        packed.size = writer.size
        packed.name = f"{task.stem}-{writer.hexdigest()[:16]}.tar"
        if task.store:
            pass

            put_shard(task.store, packed.name, task.temporary, packed.size)
            task.temporary.unlink()
    except BaseException:
        task.temporary.unlink(missing_ok=True)
        raise
    # The tar's name is known only now that its last byte is.
    packed.images = [(*row[:2], packed.name, *row[2:]) for row in packed.images]
    return packed


def _write(task: ShardTask, packed: PackedShard) -> ShardWriter:
    """Write the tar, whole and flushed to the disk, and the rows that speak of it."""
    source = _source(task.address, task.layout)
    with with_filename(task.folder / task.stem), task.temporary.open("wb") as file:
        with ShardWriter(file) as writer:
            offsets: dict[str, int] = {}
            threads = STORE_READERS if task.address.startswith("s3://") else 0
            for record, taken in prefetch(source.read, task.records, threads):
                _pack_image(record, taken, task, writer, offsets, packed)
        file.flush()
        os.fsync(file.fileno())
    return writer


def _pack_image(
    record: ImageRecord,
    taken: PendingRead,
    task: ShardTask,
    writer: ShardWriter,
    offsets: dict[str, int],
    packed: PackedShard,
) -> None:
    """Add one image to the shard, or to what is refused."""
    about = (record.person, record.modality, record.camera)
    original = None
    try:
        data = _read(taken, record)
        key = original = hashlib.sha256(data).hexdigest()
        extension = extension_of(record.path)
        if fault := label_fault(record.person):
            raise BadImage(fault if fault == NO_LABEL else f"person {fault}")
        height, width = probe(data, extension, task.max_pixels)
        deep = grey16(data, extension)
    except BadImage as bad:
        packed.refused.append((record.path, bad.reason, original, *about))
    else:
        if deep is not None:
            packed.grey16.append((canonical_label(record.camera), *extremes(deep)))
            if given := range_of(record.camera, task.grey16_range):
                data, extension = png_of_range(deep, *given, source=original), "png"
                key = hashlib.sha256(data).hexdigest()
        if key not in offsets:  # a tar must not have two members of one name
            offsets[key] = writer.add(key, extension, data, _facts(record, len(data)))
        place = (offsets[key], len(data))
        listed = (record.captured_at, record.sides or None, record.places or None)
        packed.images.append((key, extension, *place, *about, record.path, width, height, *listed))
    packed.hashes.append(original)


def _facts(record: ImageRecord, size: int) -> dict[str, Any]:
    return {
        "person": record.person,
        "modality": record.modality,
        "camera": record.camera,
        "path": record.path,
        "size": size,
        "captured_at": record.captured_at,
    }


def _read(taken: PendingRead, record: ImageRecord) -> bytes:
    try:
        return taken()
    except OSError as error:
        raise UserError(
            f"{record.path}: cannot be read: {explain_os_error(error) or error or type(error).__name__}. "
            "When it can, run the command again: it goes on where it stopped"
        ) from error


@cache
def _source(address: str, layout: str) -> Source:
    """One source for all tasks of a process: it may hold a connection."""
    return open_source(address, layout)


# Shards that ingest puts into an object store (`ingest.store`): objects by their content, never rewritten.
#
# Nothing is ever removed there: other clones and older commits may name the same objects.


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
