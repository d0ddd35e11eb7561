"""Drift: do the images of a drop look like those of training and test, camera by camera?

`Reference` has the images in data/samples.parquet: those of the training people, and those of the test
people, whom the same cameras saw. `measured` gives each image its statistics and its feature, and `compare`
tests each camera of a drop against the same camera of the reference (csdn.curation.two_sample). Features are
compared over people whom the model was not trained on: its features of training people differ from those of
all others, whatever the camera.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from csdn.curation.two_sample import (
    ALPHA,
    MIN_PEOPLE,
    STATISTICS,
    image_statistics,
    means_of_people,
    p_of_features,
    p_of_statistics,
)
from csdn.data.batch import ImageReader
from csdn.data.catalog import MODALITIES, SampleTable, load_dataset, to_table
from csdn.data.images import EXTENSIONS, BadImage, extension_of, probe
from csdn.data.shards import Place
from csdn.ingest.ledger import Drop
from csdn.runtime.errors import UserError
from csdn.search.embedder import MAX_PIXELS, Embedder, read_batches
from csdn.search.images import GalleryImage, Grey16Ranges, images_of_drops, picture_of

PEOPLE, IMAGES = 200, 4  # at most, of a camera and of a person there: what a comparison costs is bounded
FEATURES = "features"
_NAMES = tuple(STATISTICS)

Report = Callable[[int, int], None]  # done, total


class View(NamedTuple):
    """A camera in a modality; the same label in the other modality is another camera."""

    modality: str
    camera: str

    def __str__(self) -> str:
        return f"{self.modality} camera {self.camera or '(no name)'}"


@dataclass(frozen=True)
class Shift:
    """A statistic of one camera: its means over people before and now, and p for all cameras together.

    size: the difference in standard deviations of people, signed. Features have p alone.
    """

    statistic: str
    p: float
    before: float | None = None
    now: float | None = None
    size: float | None = None

    @property
    def alarm(self) -> bool:
        return self.p <= ALPHA

    def __str__(self) -> str:
        if self.size is None:
            return f"{self.statistic} (p {self.p:.3f})"
        return f"{self.statistic} {self.before:.4g} -> {self.now:.4g} ({self.size:+.1f} SD, p {self.p:.3f})"


@dataclass(frozen=True)
class CameraDrift:
    """The comparison of one camera.

    images: all that the drop has; people: of the sample that is compared; unnamed: images of it without a
    person, each counted as a person. shifts: every statistic that was tested. moved: the images of the drop
    that differ most in the first of the alarms (of a new camera: any); typical: images of the reference in
    the middle of it.
    """

    view: View
    images: int
    people: int
    people_before: int
    unnamed: int = 0
    shifts: tuple[Shift, ...] = ()
    moved: tuple[GalleryImage, ...] = ()
    typical: tuple[GalleryImage, ...] = ()

    @property
    def alarms(self) -> list[Shift]:
        """The statistics that changed, the largest change first."""
        return sorted((one for one in self.shifts if one.alarm), key=lambda one: -abs(one.size or 0))

    @property
    def is_new(self) -> bool:
        return not self.people_before

    @property
    def alarm(self) -> bool:
        return self.is_new or bool(self.alarms)

    @property
    def verdict(self) -> str:
        """One line."""
        if self.is_new:
            return f"new camera; people: {self.people}, images: {self.images}"
        if not self.shifts:
            return (
                f"not tested; people now: {self.people}, before: {self.people_before}, needed: {MIN_PEOPLE}"
            )
        changed = ", ".join(map(str, self.alarms)) or "no change found"
        return changed + (
            f"; images without a person, counted as people: {self.unnamed}" if self.unnamed else ""
        )


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


@dataclass(frozen=True)
class Measured:
    """Good images of one camera, with their people, statistics [n, S] and features [n, D].

    unseen: which of them are of people whom the model was not trained on.
    """

    images: list[GalleryImage]
    people: np.ndarray
    unseen: np.ndarray
    statistics: np.ndarray
    features: np.ndarray

    def of_people(self) -> np.ndarray:
        return means_of_people(self.people, self.statistics)

    def features_of_strangers(self) -> np.ndarray:
        return means_of_people(self.people[self.unseen], self.features[self.unseen])


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
    return Measured(good, _units(good), unseen, np.concatenate(statistics), np.concatenate(features))


def _read(
    image: GalleryImage, embedder: Embedder, grey16: Grey16Ranges
) -> tuple[np.ndarray, tuple[int, int]] | str:
    """The network's picture and the file's (height, width), or why the image is bad."""
    try:
        data = image.read()
        picture = picture_of(data, image.source, image.camera, embedder, grey16)
        return picture, probe(data, extension_of(image.source), MAX_PIXELS)
    except BadImage as error:
        return error.reason


def _units(images: Iterable[GalleryImage]) -> np.ndarray:
    """The person of each image; an image without one is a person of its own."""
    return np.array([f"person {image.person}" if image.person else image.source for image in images], object)


def sampled(people: np.ndarray) -> np.ndarray:
    """Positions of at most IMAGES images of each of at most PEOPLE people, drawn at random, ascending."""
    draws = np.random.default_rng(0)
    names, person = np.unique(people, return_inverse=True)
    chosen = np.isin(person, draws.permutation(len(names))[:PEOPLE])
    order = draws.permutation(np.flatnonzero(chosen))
    order = order[np.argsort(person[order], kind="stable")]
    _, first, person_of = np.unique(person[order], return_index=True, return_inverse=True)
    return np.sort(order[np.arange(len(order)) - first[person_of] < IMAGES])


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


def compare(pairs: Mapping[View, tuple[Measured | None, Measured, int]]) -> Iterator[CameraDrift]:
    """Of each camera: its images before (None: it is new) and now, and how many images it has now in all."""
    tested = sum(before is not None for before, _, _ in pairs.values())
    for view, (before, now, images) in pairs.items():
        people, unnamed = len(np.unique(now.people)), sum(not image.person for image in now.images)
        known = 0 if before is None else len(np.unique(before.people))
        found = CameraDrift(view, images, people, known, unnamed)
        if found.is_new:
            found = replace(found, moved=_of_other_people(now, np.arange(len(now.images))))
        if min(people, known) >= MIN_PEOPLE:
            found = replace(found, shifts=tuple(_shifts(before, now, tested)))
        if found.alarms:
            moved, typical = _shown(before, now, found.alarms[0].statistic)
            found = replace(found, moved=moved, typical=typical)
        yield found


def _shifts(before: Measured, now: Measured, cameras: int) -> Iterator[Shift]:
    old, new = before.of_people(), now.of_people()
    # At least a hundredth of the mean: what never varied, such as the height, has no deviation.
    scale = np.maximum(np.maximum(old.std(0), 0.01 * np.abs(old.mean(0))), 1e-5)
    ps = p_of_statistics(old, new, cameras)
    for n, p in enumerate(ps):
        means = float(old[:, n].mean()), float(new[:, n].mean())
        yield Shift(_NAMES[n], float(p), *means, (means[1] - means[0]) / float(scale[n]))
    strangers = before.features_of_strangers(), now.features_of_strangers()
    if min(map(len, strangers)) >= MIN_PEOPLE:
        yield Shift(FEATURES, p_of_features(*strangers, cameras))


SHOWN = 6  # pictures of a camera before, and now


def _shown(
    before: Measured, now: Measured, statistic: str
) -> tuple[tuple[GalleryImage, ...], tuple[GalleryImage, ...]]:
    """The images that moved most in a statistic, and typical ones before, each of another person."""
    old, new = _values(before, now, statistic)
    middle = np.median(old)
    direction = np.sign(new.mean() - middle)
    moved = _of_other_people(now, np.argsort(-direction * (new - middle), kind="stable"))
    return moved, _of_other_people(before, np.argsort(np.abs(old - middle), kind="stable"))


def _values(before: Measured, now: Measured, statistic: str) -> tuple[np.ndarray, np.ndarray]:
    """A statistic of each image; of features, the part along the difference of the means."""
    if statistic != FEATURES:
        n = _NAMES.index(statistic)
        return before.statistics[:, n], now.statistics[:, n]
    way = now.features_of_strangers().mean(0) - before.features_of_strangers().mean(0)
    return before.features @ way, now.features @ way


def _of_other_people(measured: Measured, order: np.ndarray) -> tuple[GalleryImage, ...]:
    """The first images in this order, one of each person."""
    _, first = np.unique(measured.people[order], return_index=True)
    return tuple(measured.images[order[n]] for n in np.sort(first)[:SHOWN])
