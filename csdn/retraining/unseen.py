"""Who may be asked when two models are compared: people whom neither was trained on.

A bucket decides who is a test person, so nobody ever changes sides (csdn.data.people). But data.test_percent,
the salt, the aliases or a drop's lists may have changed since the champion was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from csdn.data.dataset import Dataset


@dataclass(frozen=True)
class Trained:
    """Whom a model has seen: people by their canonical names of that time, and their images by key."""

    people: frozenset[str]
    images: pa.ChunkedArray

    def __or__(self, other: Trained) -> Trained:
        return Trained(self.people | other.people, _joined(self.images, other.images))


def trained_on(people: Iterable[str], dataset: Dataset) -> Trained:
    """Whom a model was trained on: `people` as its config.json names them, the images of its data."""
    seen = dataset.samples.filter(pc.equal(dataset.samples["side"], "train"))
    return Trained(frozenset(people), seen["key"])


def unseen(dataset: Dataset, trained: Trained, person: Callable[[str], str]) -> Dataset:
    """The test images of a data set whose people no model has seen, neither by name nor by an image.

    person: the name by which somebody is known today, so that an alias made since hides nobody.
    """
    tests = dataset.samples.filter(pc.equal(dataset.samples["side"], "test"))
    names = trained.people | {person(name) for name in trained.people}
    known = [name in names or person(name) in names for name in dataset.people["person"].to_pylist()]
    by_name = dataset.people["row"].filter(pa.array(known, pa.bool_()))
    by_image = tests["person_row"].filter(pc.is_in(tests["key"], value_set=trained.images))
    left_out = pc.is_in(tests["person_row"], value_set=_joined(by_name, by_image))
    return Dataset(tests.filter(pc.invert(left_out)), dataset.people)


def without_drops(dataset: Dataset, drops: Iterable[str]) -> Dataset:
    """The data set without the images of some drops, by id."""
    gone = pc.is_in(dataset.samples["drop"], value_set=pa.array(list(drops), pa.string()))
    return Dataset(dataset.samples.filter(pc.invert(gone)), dataset.people)


def _joined(first: pa.ChunkedArray, second: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([*first.chunks, *second.chunks], first.type)
