"""The images of one side of the data by their keys: person, camera, picture, distances of features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from csdn.data.dataset import Dataset, SampleTable
from csdn.report.distances import unit_rows
from csdn.report.pictures import Pictures


@dataclass(frozen=True)
class Shown:
    """One picture with what is said of it."""

    picture: str
    person: str
    camera: str
    right: bool | None = None  # None: the query itself


class Gallery:
    """Images of `table`; `features` [n, D] of its rows may be left out where no distance is asked for."""

    def __init__(
        self, table: SampleTable, dataset: Dataset, shards: str | Path, features: np.ndarray | None = None
    ) -> None:
        self.table = table
        self.rows = {str(key): row for row, key in enumerate(table.key)}
        self.names = person_names(dataset)
        self.pictures = Pictures(table, shards)
        self.features = features

    def person(self, key: str) -> str:
        return self.names[int(self.table.person_row[self.rows[key]])]

    def distance(self, one: str, other: str) -> float:
        """Cosine distance of two images."""
        first, second = unit_rows(self.features[[self.rows[one], self.rows[other]]])
        return 1 - float(first @ second)

    def show(self, key: str, query_person: str | None = None) -> Shown:
        """Its picture; where it answers the query of a person, whether it is right."""
        row, person = self.rows[key], self.person(key)
        camera = self.table.camera_names[self.table.camera[row]]
        right = None if query_person is None else person == query_person
        return Shown(self.pictures.uri(row), person, camera, right)


def person_names(dataset: Dataset) -> dict[int, str]:
    """Canonical names by row of the table of people."""
    people = dataset.people
    return dict(zip(people["row"].to_pylist(), people["person"].to_pylist(), strict=True))
