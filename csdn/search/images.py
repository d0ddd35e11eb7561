"""The images of a gallery or of a query: folders and object stores, the ledger's drops, single files.

An address with a manifest or a folder `visible` or `infrared` is a drop in the layout `cameras`
(csdn.ingest.sources.cameras). In any other folder every image file counts: it is unlabelled, its camera is
the first folder below the address, and the caller names the modality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path

import numpy as np

from csdn.data.catalog import MODALITIES, ImageRecord
from csdn.data.images import BadImage, extension_of, grey16, probe
from csdn.data.labels import canonical_label, label_fault
from csdn.data.storage import PROTOCOLS, Store
from csdn.ingest.ledger import Drop, list_records, whole_address
from csdn.ingest.pack import Range, png_of_range, range_of
from csdn.ingest.sources import Source, open_source
from csdn.ingest.sources.cameras import MANIFESTS
from csdn.ingest.sources.tree import Files, Kind, LocalTree, kind_of, not_taken, open_tree
from csdn.runtime.errors import UserError, explain_os_error
from csdn.search.embedder import MAX_PIXELS, Embedder
from csdn.synthetic.sets import SCHEME, image_at, png

Grey16Ranges = Mapping[str, Range]  # by camera, as `ingest.grey16_range`


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """An image and what is known of it; labels are canonical, "" where there is none.

    source: the address by which `read_source` finds it again; time: seconds since 1970, UTC; size: bytes, 0
    where it is not known before reading.
    """

    source: str
    person: str
    camera: str
    modality: str
    time: int | None
    size: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class ImageListing:
    """Images at an address, and (path, reason) of files that may be images and cannot be taken."""

    images: list[GalleryImage]
    refused: list[tuple[str, str]] = field(default_factory=list)


def list_images(address: str, modality: str) -> ImageListing:
    """The images at a folder, a prefix of an object store, a manifest, or of a single image file.

    modality: of images whose folder or manifest does not say it. Raises UserError where there is none.
    """
    if modality not in MODALITIES:
        raise UserError(f"modality {modality!r} is unknown; it is {' or '.join(MODALITIES)}")
    is_manifest = address.lower().endswith((".csv", ".parquet"))
    if not is_manifest and "://" not in address and Path(address).is_file():
        return ImageListing([_single(Path(address), modality)])
    files = Files({}, {}) if is_manifest else open_tree(address).files()
    if is_manifest or _is_drop(files):
        source = open_source(address, "cameras")
        return _of_source(source, source.listing(), address)
    return _of_folder(address, files, modality)


def images_of_drops(drops: Iterable[Drop]) -> ImageListing:
    """The images of drops of the ledger."""
    images, refused = list[GalleryImage](), list[tuple[str, str]]()
    for drop in drops:
        source = open_source(drop.address, drop.layout)
        listing = _of_source(source, list_records(source, drop), drop.address)
        images += listing.images
        refused += listing.refused
    return ImageListing(images, refused)


def _is_drop(files: Files) -> bool:
    first = {path.split("/")[0].casefold() for path in files.entries if "/" in path}
    return bool(first & set(MODALITIES)) or any(files.real_path(name) in files.entries for name in MANIFESTS)


def _of_source(source: Source, records: Iterable[ImageRecord], address: str) -> ImageListing:
    root = _root(source, address)
    images, refused = dict[str, GalleryImage](), list(source.refused)
    for record in records:
        try:
            image = _of_record(record, root, partial(source.read, record))
        except BadImage as error:
            refused.append((record.path, error.reason))
            continue
        if images.setdefault(image.source, image).person != image.person:
            refused.append((record.path, "found under two people"))
    for path, _ in refused:
        images.pop(f"{root}/{path}", None)
    return ImageListing(list(images.values()), refused)


def _root(source: Source, address: str) -> str:
    """The address below which the paths of a source's records are."""
    tree = getattr(source, "tree", None)
    if tree is None:
        return address  # builtin:NAME
    return whole_address(str(tree.root)) if isinstance(tree, LocalTree) else tree.store.address


def _of_record(record: ImageRecord, root: str, read: Callable[[], bytes]) -> GalleryImage:
    if fault := record.person and label_fault(record.person):
        raise BadImage(f"person {fault}")
    return GalleryImage(
        f"{root}/{record.path}",
        canonical_label(record.person) if record.confirmed else "",
        canonical_label(record.camera),
        str(record.modality),
        seconds(record.captured_at),
        record.size,
        read,
    )


def _of_folder(address: str, files: Files, modality: str) -> ImageListing:
    """Every image file below a folder that is no drop."""
    tree, images, refused = open_tree(address), [], list(files.refused.items())
    root = whole_address(address).rstrip("/")
    for path, entry in sorted(files.entries.items()):
        if (kind := kind_of(path)) == Kind.OTHER_IMAGE:
            refused.append((path, not_taken(path)))
        elif kind == Kind.IMAGE:
            first = path.split("/")[0] if "/" in path else ""
            camera = "" if label_fault(first) else canonical_label(first)
            read = partial(tree.read, entry)
            images.append(GalleryImage(f"{root}/{path}", "", camera, modality, None, entry.size, read))
    if not images:
        raise UserError(f"{address}: no image is there; names of images end in .jpg, .png and so on")
    return ImageListing(images, refused)


def _single(path: Path, modality: str) -> GalleryImage:
    source = whole_address(str(path))
    return GalleryImage(source, "", "", modality, None, path.stat().st_size, partial(read_source, source))


def seconds(time: str | None) -> int | None:
    """Seconds since 1970 of a time in ISO 8601; without a zone it is UTC. None for other texts and no text.

    >>> seconds("1970-01-02"), seconds("1970-01-01T01:00+01:00"), seconds("yesterday")
    (86400, 0, None)
    """
    try:
        moment = datetime.fromisoformat(time or "")
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # no time, or one that is outside the years 1 to 9999 in UTC
        return None
    return int(moment.timestamp())


def read_source(source: str) -> bytes:
    """The bytes of the image at a GalleryImage's address. Raises UserError where it is not there any more."""
    try:
        if source.startswith(SCHEME):
            return png(image_at(source.split("/", 1)[1]))
        scheme, separator, path = source.partition("://")
        if not separator:
            return Path(source).read_bytes()
        if scheme not in PROTOCOLS:
            raise UserError(f"{source}: {scheme}:// is not supported")
        bucket, _, name = path.partition("/")
        store = _bucket(f"{scheme}://{bucket}")
        if found := store.find(name):
            return store.read(found)
        raise FileNotFoundError(source)
    except FileNotFoundError:
        raise UserError(f"{source}: no such image; it was there when the gallery was made") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {explain_os_error(error) or error}") from error


@cache
def _bucket(address: str) -> Store:
    return Store(address)


def picture_of(
    data: bytes, source: str, camera: str, embedder: Embedder, grey16_ranges: Grey16Ranges
) -> np.ndarray:
    """The network's picture of an image file, uint8 [3, H, W]; raises BadImage.

    source: its name, whose extension decides how it is decoded. A grey image of 16 bits becomes one of 8 by
    the range of its camera, as ingest does it.
    """
    if (extension := extension_of(source)) is None:
        raise BadImage(not_taken(source))
    if given := range_of(camera, grey16_ranges):
        probe(data, extension, MAX_PIXELS)
        if (deep := grey16(data, extension)) is not None:
            low, high = given
            data, extension = png_of_range(deep, low, high, source=""), "png"
    return embedder.prepare(data, extension)
