"""Filling a gallery: its images are read, embedded and added part by part; and its index."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from csdn.data.catalog import MODALITIES
from csdn.data.images import BadImage
from csdn.ingest.pack import STORE_READERS
from csdn.search.embedder import READERS, Embedder, read_batches
from csdn.search.gallery import ROWS, Gallery, IndexEntry
from csdn.search.images import GalleryImage, Grey16Ranges, picture_of
from csdn.search.index import TRAINED_ON, build_index, clusters_of
from csdn.search.search import EXACT_UP_TO, Searcher

if TYPE_CHECKING:
    import faiss

SECONDS = 60  # of work that a killed run loses at most
RECALL_QUERIES = 200
_NEW_ROWS = pa.schema([field for field in ROWS if field.name != "id"])

Report = Callable[[int, int], None]  # done, total
Read = tuple[np.ndarray, bytes] | str  # picture and SHA-256, or why the image is refused


def add_images(
    gallery: Gallery,
    images: Sequence[GalleryImage],
    embedder: Embedder,
    grey16: Grey16Ranges,
    report: Report = lambda done, total: None,
) -> list[tuple[str, str]]:
    """Embed the images that the gallery does not have yet, and add them; bad ones: (source, reason).

    The gallery has an image if its source, size and labels are the same. A run that was killed goes on where
    its last part ended. Memory holds one part and what writes it.
    """
    images = list({image.source: image for image in images}.values())
    new = _new_images(gallery, images)
    known, added, started = len(images) - len(new), 0, time.monotonic()
    refused: list[tuple[str, str]] = []
    batches: list[tuple[np.ndarray, pa.Table]] = []
    try:
        for features, rows in embedded(new, embedder, grey16, refused):
            added += len(rows)
            report(known + added + len(refused), len(images))
            batches.append((features.astype(gallery.manifest.dtype), rows))
            waiting = sum(len(rows) for _, rows in batches)
            if waiting >= gallery.part_images or time.monotonic() - started > SECONDS:
                _flush(gallery, batches)
                started = time.monotonic()
    finally:  # where an image cannot be read, the next run need not embed those before it again
        _flush(gallery, batches)
    return refused


def _new_images(gallery: Gallery, images: Sequence[GalleryImage]) -> list[GalleryImage]:
    """The images that the gallery does not have, visible ones first.

    An unlabelled image is one that it has if their sources and sizes are the same: no label is lost.
    """
    wanted = _listed(images).append_column("n", pa.array(np.arange(len(images))))
    if len(gallery):
        known = _without_nulls(pa.table({name: gallery.column(name) for name in _SAME}))
        labelled = pc.not_equal(wanted["person"], "")
        wanted = pa.concat_tables(
            wanted.filter(which).join(known.select(keys), keys=keys, join_type="left anti").select(["n"])
            for which, keys in ((labelled, list(_SAME)), (pc.invert(labelled), ["source", "size"]))
        )
    chosen = (images[n] for n in sorted(wanted["n"].to_pylist()))
    return sorted(chosen, key=lambda image: MODALITIES.index(image.modality))


_SAME = ("source", "person", "camera", "modality", "time", "size")


def _listed(images: Sequence[GalleryImage]) -> pa.Table:
    columns = {name: [getattr(image, name) for image in images] for name in _SAME}
    schema = pa.schema([ROWS.field(name) for name in _SAME])
    return _without_nulls(pa.table(columns, schema))


def _without_nulls(table: pa.Table) -> pa.Table:
    """Times as whole numbers, since a missing time equals no other in a join."""
    times = table["time"].cast(pa.int64()).fill_null(np.iinfo(np.int64).min)
    return table.set_column(table.schema.get_field_index("time"), "time", times)


def embedded(
    images: Sequence[GalleryImage],
    embedder: Embedder,
    grey16: Grey16Ranges,
    refused: list[tuple[str, str]],
) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Features [n, D] and rows of the images, a batch at a time; bad images join `refused` instead."""
    for modality in MODALITIES:
        own = [image for image in images if image.modality == modality]
        in_store = any("://" in image.source for image in own)
        readers = STORE_READERS if in_store else READERS
        read_image = partial(_read, embedder=embedder, grey16=grey16)
        for batch, read in read_batches(own, read_image, readers=readers):
            good, pictures, hashes = [], [], []
            for image, found in zip(batch, read, strict=True):
                if isinstance(found, str):
                    refused.append((image.source, found))
                else:
                    good.append(image)
                    pictures.append(found[0])
                    hashes.append(found[1])
            if good:
                yield embedder.embed(np.stack(pictures), modality), rows_of(good, hashes)


def _read(image: GalleryImage, embedder: Embedder, grey16: Grey16Ranges) -> Read:
    try:
        data = image.read()
        picture = picture_of(data, image.source, image.camera, embedder, grey16)
    except BadImage as error:
        return error.reason
    return picture, hashlib.sha256(data).digest()


def rows_of(images: Sequence[GalleryImage], hashes: Sequence[bytes]) -> pa.Table:
    """The images as rows of a gallery, without ids."""
    columns = {name: [getattr(image, name) for image in images] for name in _SAME} | {"sha256": list(hashes)}
    return pa.table(columns, _NEW_ROWS)


def _flush(gallery: Gallery, batches: list[tuple[np.ndarray, pa.Table]]) -> None:
    """Add the batches to the gallery, and forget them."""
    if batches:
        gallery.add(np.concatenate([f for f, _ in batches]), pa.concat_tables([rows for _, rows in batches]))
        batches.clear()


def images_of(gallery: Gallery) -> list[GalleryImage]:
    """The gallery's own images, to be embedded again by another model."""
    images = []
    for part in gallery.parts:
        for row in part.rows.to_pylist():
            at = row["time"] and int(row["time"].timestamp())
            images.append(
                GalleryImage(
                    row["source"],
                    row["person"],
                    row["camera"],
                    row["modality"],
                    at,
                    row["size"],
                    partial(gallery.read_image, row["source"]),
                )
            )
    return images


# The index.


def wants_index(gallery: Gallery) -> bool:
    """Whether more images are outside the gallery's index than are searched exactly in passing."""
    entry = gallery.manifest.index
    ids = gallery.column("id").to_numpy()
    return bool(np.count_nonzero(ids > (entry.last if entry else -1)) > EXACT_UP_TO)


def make_index(gallery: Gallery, report: Report = lambda done, total: None) -> IndexEntry:
    """Build the index over all images of the gallery, measure its recall, and put it in force.

    Its recall is the share of the ten nearest images that it finds, with images of the gallery as queries,
    each without itself.
    """
    searcher, draws = Searcher(gallery), np.random.default_rng(0)
    size = min(len(gallery), TRAINED_ON * clusters_of(len(gallery)))
    sample = searcher.features(np.sort(draws.choice(len(gallery), size, replace=False)))
    blocks = _reported(searcher, len(gallery), report)
    index = build_index(blocks, searcher.ids, gallery.manifest.dimension, sample)
    queries = draws.choice(len(gallery), min(RECALL_QUERIES, len(gallery)), replace=False)
    parts = " ".join(part.name for part in searcher.parts)
    name = hashlib.sha256(parts.encode()).hexdigest()[:16]
    entry = IndexEntry(
        name=name,
        last=int(searcher.ids[-1]),
        images=len(gallery),
        recall=recall(searcher, index, queries),
        queries=len(queries),
    )
    gallery.set_index(entry, index, searcher.ids)
    return entry


def _reported(searcher: Searcher, count: int, report: Report) -> Iterator[np.ndarray]:
    for positions, block in searcher.blocks(np.ones(count, bool)):
        yield block.numpy()
        report(int(positions[-1]) + 1, count)


def recall(searcher: Searcher, index: faiss.IndexIVF, queries: np.ndarray, at: int = 10) -> float:
    """The share of the `at` nearest images of each query (a position of the gallery) that the index finds."""
    features = searcher.features(queries)
    _, exact = searcher.nearest(features, at + 1, exact=True)
    _, found = searcher.through(index, features, at + 1)
    shares = []
    for query, wanted, got in zip(queries, exact, found, strict=True):
        others = [n for n in wanted if n != query][:at]
        shares.append(np.isin(others, got).mean())
    return float(np.mean(shares))
