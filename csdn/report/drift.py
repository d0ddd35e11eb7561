"""The section "Drift": the newest drop against the earlier ones, camera by camera (docs/drift.md).

Images are read from the shards; features are those that the stage evaluate has stored, of the test people.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds

from csdn.data.augment import resize
from csdn.data.batch import ImageReader
from csdn.data.catalog import MODALITIES, Dataset, SampleTable, to_table
from csdn.data.images import EXTENSIONS, decode
from csdn.data.shards import Place
from csdn.evaluation.drift import CameraDrift, Measured, View, compare, sampled
from csdn.evaluation.two_sample import image_statistics
from csdn.report.feature_space import person_names, unit_rows
from csdn.report.images import Pictures, Shown

SHOWN_CAMERAS = 6  # with pictures; `csdn drift` shows all
BATCH = 64  # images in memory as floats at a time


@dataclass(frozen=True, eq=False)
class _Split:
    """The images of training or of test, which of them are the newest drop's, and where they are read."""

    table: SampleTable
    newest: np.ndarray  # bool [n]
    reader: ImageReader
    pictures: Pictures
    features: np.ndarray | None  # [n, D], unit length; None: of people whom the model was trained on


Row = tuple[_Split, int]


def newest_drift(
    ledger: Sequence[Mapping[str, Any]],
    dataset: Dataset,
    tables: tuple[SampleTable, SampleTable],
    shards: Place,
    features: np.ndarray,
    image_size: Sequence[int],
) -> dict[str, Any] | None:
    """The section's values; None if the data has one drop only.

    ledger: the drops in order of arrival. tables: training and test; features: of the test images [n, D].
    """
    present = set(pc.unique(to_table(dataset.samples, ["drop"])["drop"]).to_pylist())
    arrived = [drop for drop in ledger if drop["id"] in present]
    if len(arrived) < 2:
        return None
    newest, splits = arrived[-1], []
    for name, table, vectors in zip(("train", "test"), tables, (None, unit_rows(features)), strict=True):
        drops = to_table(dataset.samples, ["drop"], ds.field("split") == name)["drop"]
        own = pc.equal(drops, newest["id"]).to_numpy()
        reader = ImageReader(table, shards, image_size)
        splits.append(_Split(table, own, reader, Pictures(table, shards), vectors))
    pairs = {}
    for view in _views(splits):
        (before, _), (now, images) = _measured(splits, view, False), _measured(splits, view, True)
        if now is not None:
            pairs[view] = before, now, images
    cameras, people = list(compare(pairs)), person_names(dataset)
    changed = [camera for camera in cameras if camera.alarm]
    return {
        "drop": newest["id"][:12],
        "address": newest["address"],
        "cameras": cameras,
        "changed": len(changed),
        "shown": [_shown(camera, people) for camera in changed[:SHOWN_CAMERAS]],
    }


def _views(splits: Sequence[_Split]) -> list[View]:
    """The cameras of the newest drop, each in its modality."""
    found = set[View]()
    for split in splits:
        table, own = split.table, split.newest
        pairs = set(zip(table.modality[own].tolist(), table.camera[own].tolist(), strict=True))
        found |= {View(MODALITIES[modality], table.camera_names[camera]) for modality, camera in pairs}
    return sorted(found)


def _measured(splits: Sequence[_Split], view: View, newest: bool) -> tuple[Measured | None, int]:
    """The measurements of a sample of a camera's images, of the newest drop or of the others (None if there
    are none), and how many images there are.
    """
    numbers = [_numbers(split, view, newest) for split in splits]
    pairs = zip(splits, numbers, strict=True)
    people = np.concatenate([split.table.person_row[own] for split, own in pairs])
    if not len(people):
        return None, 0
    chosen = sampled(people)
    split_of = np.repeat(np.arange(len(splits)), [len(own) for own in numbers])[chosen]
    rows = [(splits[k], int(n)) for k, n in zip(split_of, np.concatenate(numbers)[chosen], strict=True)]
    unseen = np.array([split.features is not None for split, _ in rows])
    width = next(split.features.shape[1] for split in splits if split.features is not None)
    features = np.zeros((len(rows), width), np.float32)
    for n in np.flatnonzero(unseen):
        split, number = rows[n]
        features[n] = split.features[number]
    statistics = np.concatenate(list(_statistics(rows)))
    return Measured(rows, people[chosen], unseen, statistics, features), len(people)


def _numbers(split: _Split, view: View, newest: bool) -> np.ndarray:
    """The rows of a camera's images in the table, of the newest drop or of the others."""
    table = split.table
    if view.camera not in table.camera_names:
        return np.zeros(0, np.int64)
    camera = table.camera == table.camera_names.index(view.camera)
    modality = table.modality == MODALITIES.index(view.modality)
    return np.flatnonzero(camera & modality & (split.newest == newest))


def _statistics(rows: Sequence[Row]) -> Iterator[np.ndarray]:
    """Statistics [n, S] of the images, in parts."""
    for split, group in groupby(rows, key=lambda row: row[0]):
        numbers = [row for _, row in group]
        for start in range(0, len(numbers), BATCH):
            part = numbers[start : start + BATCH]
            files = zip(part, split.reader.contents(part), strict=True)
            images = [decode(data, EXTENSIONS[split.table.extension[row]]) for row, data in files]
            pictures = [resize(image, split.reader.image_size).transpose(2, 0, 1) for image in images]
            yield image_statistics(np.stack(pictures), np.array([image.shape[:2] for image in images]))


def _shown(camera: CameraDrift, people: Mapping[int, str]) -> dict[str, Any]:
    """The pictures of a camera that has changed."""

    def shown(row: Row) -> Shown:
        split, number = row
        return Shown(
            split.pictures.uri(number), people[int(split.table.person_row[number])], camera.view.camera
        )

    return {
        "camera": camera,
        "first": camera.alarms[0].statistic if camera.alarms else "",
        "moved": [shown(row) for row in camera.moved],
        "typical": [shown(row) for row in camera.typical],
    }
