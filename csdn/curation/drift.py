"""Drift: do the images of a drop look like those of training and test, camera by camera?

`Reference` has the images in data/samples.parquet: those of the training people, and those of the test
people, whom the same cameras saw. `measured` gives each image its statistics and its feature, and `drift_of`
tests each camera of a drop against the same camera of the reference (csdn.evaluation.drift). The drop need
not be ingested.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from csdn.data.batch import ImageReader
from csdn.data.catalog import MODALITIES, SampleTable, load_dataset, to_table
from csdn.data.images import EXTENSIONS, BadImage, extension_of, probe
from csdn.data.shards import Place
from csdn.evaluation.drift import CameraDrift, Measured, View, compare, sampled
from csdn.evaluation.two_sample import image_statistics
from csdn.ingest.ledger import Drop
from csdn.runtime.errors import UserError
from csdn.search.embedder import MAX_PIXELS, Embedder, read_batches
from csdn.search.images import GalleryImage, Grey16Ranges, images_of_drops, picture_of

Report = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Drift:
    """The comparison of a drop with the reference; model: SHA-256 of the weights that gave the features."""

    drop: Drop
    model: str
    cameras: list[CameraDrift]
    refused: list[tuple[str, str]] = field(default_factory=list)

    @property
    def alarms(self) -> list[CameraDrift]:
        """The cameras that are new, or whose images have changed."""
        return [camera for camera in self.cameras if camera.alarm]

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        cameras = [
            {
                **camera.view._asdict(),
                "images": camera.images,
                "people": camera.people,
                "people_before": camera.people_before,
                "alarm": camera.alarm,
                "verdict": camera.verdict,
                "statistics": [asdict(shift) | {"alarm": shift.alarm} for shift in camera.shifts],
            }
            for camera in self.cameras
        ]
        return {"drop": self.drop.id, "address": self.drop.address, "model": self.model, "cameras": cameras}


# Measuring the images of one camera.


def measured(
    images: Sequence[GalleryImage],
    embedder: Embedder,
    trained: Collection[str],
    grey16: Grey16Ranges,
    refused: list[tuple[str, str]],
) -> Measured | None:
    """The measurements of images of one camera, None where none is good; bad images join `refused`.

    trained: the people whom the model was trained on.
    """
    good, statistics, features = list[GalleryImage](), [], []
    for batch, read in read_batches(images, partial(_read, embedder=embedder, grey16=grey16)):
        pairs = list(zip(batch, read, strict=True))
        refused += [(image.source, found) for image, found in pairs if isinstance(found, str)]
        found = [(image, *found) for image, found in pairs if not isinstance(found, str)]
        if found:
            kept, pictures, sizes = zip(*found, strict=True)
            statistics.append(image_statistics(np.stack(pictures), np.array(sizes)))
            features.append(embedder.embed(np.stack(pictures), kept[0].modality))
            good += kept
    if not good:
        return None
    unseen = np.array([bool(image.person) and image.person not in trained for image in good])
    unnamed = sum(not image.person for image in good)
    values = np.concatenate(statistics), np.concatenate(features)
    return Measured(good, _units(good), unseen, *values, unnamed)


def _read(
    image: GalleryImage, embedder: Embedder, grey16: Grey16Ranges
) -> tuple[np.ndarray, tuple[int, int]] | str:
    """The network's picture and the file's (height, width), or why the image is bad."""
    try:
        data = image.read()
        picture = picture_of(data, image.source, image.camera, embedder, grey16)
        return picture, probe(data, extension_of(image.source) or "", MAX_PIXELS)
    except BadImage as error:
        return error.reason


def _units(images: Iterable[GalleryImage]) -> np.ndarray:
    """The person of each image; an image without one is a person of its own."""
    return np.array([f"person {image.person}" if image.person else image.source for image in images], object)


# The images of training and test.


class Reference:
    """The images of training and test people that ingest wrote, measured with a model.

    Raises UserError where the tables or an image cannot be read.
    """

    def __init__(self, data: Path, shards: Place, embedder: Embedder, without: Collection[str] = ()) -> None:
        """data: the folder of the tables; without: ids of drops whose images are left out."""
        dataset, self.embedder = load_dataset(data), embedder
        self.names = dict(zip(*(dataset.people[name].to_pylist() for name in ("row", "person")), strict=True))
        self.parts: list[tuple[SampleTable, ImageReader, np.ndarray]] = []
        for split, table in (("train", dataset.train_table()), ("test", dataset.test_table())):
            drops = to_table(dataset.samples, ["drop"], ds.field("split") == split)["drop"]
            left_out = pc.is_in(drops, value_set=pa.array(list(without), pa.string())).to_numpy()
            self.parts.append((table, ImageReader(table, shards, embedder.image_size), ~left_out))
        if not any(kept.any() for _, _, kept in self.parts):
            raise UserError(f"{data}: no other drop's images are there, so there is nothing to compare with")
        self.trained = {self.names[row] for row in np.unique(self.parts[0][0].person_row).tolist()}
        self._known: dict[View, Measured | None] = {}

    def measured(self, view: View) -> Measured | None:
        """A sample of the images of a camera, measured once; None if there is none."""
        if view not in self._known:  # grey images of 16 bits have become 8 bits in the shards
            self._known[view] = measured(self._images(view), self.embedder, self.trained, {}, [])
        return self._known[view]

    def _images(self, view: View) -> list[GalleryImage]:
        rows = [self._rows(part, view) for part in range(len(self.parts))]
        tables = [table for table, _, _ in self.parts]
        people = [table.person_row[own] for table, own in zip(tables, rows, strict=True)]
        chosen, starts = sampled(np.concatenate(people)), np.cumsum([0, *map(len, rows)])
        images = []
        for (table, reader, _), own, start in zip(self.parts, rows, starts, strict=False):
            taken = own[chosen[(chosen >= start) & (chosen < start + len(own))] - start]
            for row, data in zip(taken, reader.contents(taken), strict=True):
                source = f"{table.key(row)}.{EXTENSIONS[table.extension[row]]}"
                facts = self.names[int(table.person_row[row])], view.camera, view.modality, None, len(data)
                images.append(GalleryImage(source, *facts, read=partial(bytes, data)))
        return images

    def _rows(self, part: int, view: View) -> np.ndarray:
        table, _, kept = self.parts[part]
        if view.camera not in table.camera_names:
            return np.zeros(0, np.int64)
        camera = table.camera == table.camera_names.index(view.camera)
        return np.flatnonzero(kept & camera & (table.modality == MODALITIES.index(view.modality)))


# The comparison.


def drift_of(
    drop: Drop,
    reference: Reference,
    grey16: Grey16Ranges,
    report: Report = lambda done, total: None,
) -> Drift:
    """Compare a drop with the reference. Raises UserError where images cannot be read."""
    listing = images_of_drops([drop])
    views: dict[View, list[GalleryImage]] = {}
    for image in sorted(listing.images, key=lambda image: (image.modality, image.camera, image.source)):
        views.setdefault(View(image.modality, image.camera), []).append(image)
    pairs, refused = {}, list(listing.refused)
    for done, (view, images) in enumerate(views.items(), 1):
        chosen = [images[n] for n in sampled(_units(images))]
        if now := measured(chosen, reference.embedder, reference.trained, grey16, refused):
            pairs[view] = reference.measured(view), now, len(images)
        report(done, len(views))
    return Drift(drop, reference.embedder.model_hash, list(compare(pairs)), refused)
