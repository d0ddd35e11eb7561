"""Packing: worker processes read the images of a drop, hash and check them, and write them into shards.

csdn.ingest.run cuts a drop into tasks, of one shard each, and collects the results. `pack` executes a task in
any process, here or on a cluster (csdn.cluster.ingest).
"""

from __future__ import annotations

import hashlib
import io
import os
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from csdn.data.catalog import ImageRecord
from csdn.data.images import BadImage, extension_of, grey16, probe
from csdn.data.labels import NO_LABEL, canonical_label, label_fault
from csdn.data.shards import ShardWriter, has_bytes_of
from csdn.data.storage import PendingRead, Store, prefetch
from csdn.ingest.forgotten import REASON as FORGOTTEN
from csdn.ingest.ledger import Drop
from csdn.ingest.sources import Source, open_source
from csdn.params import IngestParams
from csdn.runtime.errors import UserError, explain_os_error
from csdn.runtime.files import temp_path, with_filename
from csdn.runtime.process import follow_parent, fork_server

# Images of a shard at most, so that small images are spread over all cores.
SHARD_IMAGES = 1000
UNCONFIRMED = "unconfirmed suggestion"
OUTLIERS = 0.1  # percent of the darkest and of the brightest pixels of a 16-bit image that are ignored
STORE_READERS = 8  # threads of each process that read from an object store, to hide its latency


Range = Sequence[int]  # low, high: values of 16-bit grey images


@dataclass(frozen=True)
class ShardTask:
    """One shard of a drop to be made in `folder`; its name begins with `stem`.

    `run` is part of the temporary name, so that runs do not share files. With `settings.store` the finished
    shard is uploaded there; otherwise it stays under its temporary name.
    forgotten: SHA-256 of images that are refused.
    """

    drop: Drop
    records: Sequence[ImageRecord]
    folder: Path
    stem: str
    settings: IngestParams
    run: str
    forgotten: frozenset[str] = frozenset()

    @property
    def temporary(self) -> Path:
        return temp_path(self.folder / f"{self.stem}-{self.run}")


@dataclass
class PackedShard:
    """A shard under its temporary name, and its rows of the tables (tuples as in csdn.data.catalog)."""

    name: str
    temporary: str  # its name until it is renamed to `name`
    size: int = 0  # bytes of the tar; 0: no image was good, so there is no tar
    images: list[tuple[Any, ...]] = field(default_factory=list)
    refused: list[tuple[Any, ...]] = field(default_factory=list)
    hashes: list[str | None] = field(default_factory=list)  # of every record, in order
    grey16: list[tuple[str, int, int]] = field(default_factory=list)  # camera and extremes of 16-bit images


def cut_shards(records: Sequence[ImageRecord], shard_bytes: int) -> list[Sequence[ImageRecord]]:
    """Cut a listing into shards of at most `shard_bytes` and SHARD_IMAGES, by the sizes in the listing.

    An image larger than a shard gets one of its own.
    """
    starts, total = [0], 0
    for n, record in enumerate(records):
        if n > starts[-1] and (total + record.size > shard_bytes or n - starts[-1] == SHARD_IMAGES):
            starts.append(n)
            total = 0
        total += record.size
    return [records[start:end] for start, end in zip(starts, [*starts[1:], len(records)], strict=True)]


# Makes the shards of tasks, in order; the number is of processes, where they run on this machine.
Packer = Callable[[Sequence[ShardTask], int], Generator[PackedShard]]


def packed_shards(tasks: Sequence[ShardTask], processes: int) -> Generator[PackedShard]:
    """The shards of the tasks, in order, made by `processes` processes; the bytes do not depend on their
    number.

    Raises UserError. Closing the iterator ends the processes.
    """
    processes = min(processes, len(tasks))
    if processes < 2:
        yield from map(pack, tasks)
        return
    context = fork_server(__name__, "webdataset")  # which takes seconds to import, once for all processes
    with ProcessPoolExecutor(processes, context, _start_worker, (dict(os.environ),)) as pool:
        try:
            yield from pool.map(pack, tasks)
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed (out of memory?). The shards that were finished are kept: "
                "free some memory, or lower ingest.max_pixels, and run the command again to go on"
            ) from None


def _start_worker(environment: dict[str, str]) -> None:
    follow_parent(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C


def pack(task: ShardTask) -> PackedShard:
    """Make one shard; an image that cannot be used is refused with a reason. Raises UserError."""
    packed = PackedShard(name="", temporary=task.temporary.name)
    try:
        writer = _write(task, packed)
        if not packed.images:
            task.temporary.unlink()
            return packed
        packed.size = writer.size
        packed.name = f"{task.stem}-{writer.hexdigest()[:16]}.tar"
        if task.settings.store:
            put_shard(task.settings.store, packed.name, task.temporary, packed.size)
            task.temporary.unlink()
    except BaseException:
        task.temporary.unlink(missing_ok=True)
        raise
    # The name of the tar contains its hash, so it is known only now.
    packed.images = [(*row[:2], packed.name, *row[2:]) for row in packed.images]
    return packed


def _write(task: ShardTask, packed: PackedShard) -> ShardWriter:
    """Write the tar, complete and flushed to the disk, and its rows."""
    source = _source(task.drop.address, task.drop.layout)
    with with_filename(task.folder / task.stem), task.temporary.open("wb") as file:
        with ShardWriter(file) as writer:
            offsets: dict[str, int] = {}
            threads = STORE_READERS if "://" in task.drop.address else 0
            for record, pending in prefetch(source.read, task.records, threads):
                _pack_image(record, pending, task, writer, offsets, packed)
        file.flush()
        os.fsync(file.fileno())
    return writer


def _pack_image(
    record: ImageRecord,
    pending: PendingRead,
    task: ShardTask,
    writer: ShardWriter,
    offsets: dict[str, int],
    packed: PackedShard,
) -> None:
    """Add one image to the shard, or to the refused files."""
    about = (record.person, record.modality, record.camera)
    original = None
    try:
        data = _read(pending, record)
        key = original = hashlib.sha256(data).hexdigest()
        if original in task.forgotten:
            raise BadImage(FORGOTTEN)
        extension = extension_of(record.path) or ""
        if fault := label_fault(record.person):
            raise BadImage(fault if fault == NO_LABEL else f"person {fault}")
        if not (record.confirmed or task.settings.trust_suggestions):
            raise BadImage(UNCONFIRMED)
        height, width = probe(data, extension, task.settings.max_pixels)
        deep = grey16(data, extension)
    except BadImage as bad:
        packed.refused.append((record.path, bad.reason, original, *about))
    else:
        if deep is not None:
            packed.grey16.append((canonical_label(record.camera), *extremes(deep)))
            if given := range_of(record.camera, task.settings.grey16_range):
                low, high = given
                data, extension = png_of_range(deep, low, high, source=original), "png"
                key = hashlib.sha256(data).hexdigest()
        if key in task.forgotten:  # only the converted image is known, if the drop could not be read then
            packed.refused.append((record.path, FORGOTTEN, original, *about))
            packed.hashes.append(original)
            return
        if key not in offsets:  # the names in a tar must be unique
            offsets[key] = writer.add(key, extension, data, _facts(record, len(data)))
        location = (offsets[key], len(data))
        listed = (record.captured_at, record.splits or None, record.places or None)
        packed.images.append((key, extension, *location, *about, record.path, width, height, *listed))
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


def _read(pending: PendingRead, record: ImageRecord) -> bytes:
    try:
        return pending()
    except OSError as error:
        raise UserError(
            f"{record.path}: cannot be read: {explain_os_error(error) or error or type(error).__name__}. "
            "When it can, run the command again: it goes on where it stopped"
        ) from error


@cache
def _source(address: str, layout: str) -> Source:
    """One source for all tasks of a process, because it may hold a connection."""
    return open_source(address, layout)


# Shards in an object store (`ingest.store`). An object is never rewritten, and never removed except by
# `csdn forget --shared`, because other clones and older commits may refer to it.


_UPLOADS = 4  # in parallel


def sizes(address: str) -> dict[str, int]:
    """Name -> bytes of every object below a prefix of an object store. Raises UserError."""
    return {found.name: found.size for found in store_at(address).objects()}


def put_shard(address: str, name: str, path: Path, size: int) -> None:
    """Upload a finished shard of `size` bytes, unless the store has it."""
    store = store_at(address)
    if store.size(name) != size:
        store.put(name, path)


def missing_shards(address: str, wanted: Mapping[str, int], folder: Path) -> list[str]:
    """The names in `wanted` (name -> bytes) that the store lacks, or has in another size, and `folder` lacks
    too.

    A missing shard that is in `folder`, from a run without a store, is uploaded; the file stays.
    """
    stored = sizes(address)
    missing = [name for name, size in wanted.items() if stored.get(name) != size]
    local = {name for name in missing if has_bytes_of(name, folder / name)}
    with ThreadPoolExecutor(_UPLOADS) as threads:
        list(threads.map(lambda name: put_shard(address, name, folder / name, wanted[name]), local))
    return [name for name in missing if name not in local]


@cache
def store_at(address: str) -> Store:
    """One store for all shards of a process, because it holds connections."""
    return Store(address)


# Grey images of 16 bits from thermal cameras. Their values fill a small part of 0..65535, so the high byte
# keeps few grey levels of them. `ingest.grey16_range` gives a camera the range that becomes 0..255.


def range_of(camera: str, ranges: Mapping[str, Range]) -> Range | None:
    """The range that `ingest.grey16_range` gives a camera; None where it gives none."""
    wanted = canonical_label(camera)
    return next((given for name, given in ranges.items() if canonical_label(name) == wanted), ranges.get("*"))


def png_of_range(values: np.ndarray, low: int, high: int, source: str) -> bytes:
    """uint16 [height, width] -> a PNG of 8 bits in which `low` is black and `high` white.

    It contains the hash of its source, so that two images with the same 8 bits stay different files. It is
    not compressed, because the bytes must not depend on the version of zlib.
    """
    above = np.clip(values, low, high).astype(np.uint32) - low
    grey = ((255 * above + (high - low) // 2) // (high - low)).astype(np.uint8)
    about = PngInfo()
    about.add_text("Source", f"sha256 {source}")
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG", compress_level=0, pnginfo=about)
    return buffer.getvalue()


def extremes(values: np.ndarray) -> tuple[int, int]:
    """The darkest and the brightest value of an image, without its outliers."""
    low, high = np.percentile(values, (OUTLIERS, 100 - OUTLIERS), method="nearest")
    return int(low), int(high)
