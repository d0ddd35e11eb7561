"""Images of the data as data URIs, which the page embeds; and a split's images by key, with labels."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from csdn.data.catalog import Dataset, SampleTable
from csdn.data.images import EXTENSIONS, decode
from csdn.data.shards import open_shards
from csdn.report.distances import unit_rows

HEIGHT = 144  # pixels; larger images are scaled down to it
QUALITY = 85  # of JPEG


class Pictures:
    """Reads images of a table from its shards, each once."""

    def __init__(self, table: SampleTable, shards: str | Path) -> None:
        self.table, self.shards = table, open_shards(shards)
        self.uris: dict[int, str] = {}

    def uri(self, row: int) -> str:
        """Row `row` of the table as `data:image/jpeg;base64,...`."""
        if row not in self.uris:
            table = self.table
            shard = table.shard_names[table.shard[row]]
            data = self.shards.read(shard, int(table.offset[row]), int(table.size[row]))
            self.uris[row] = data_uri(data, EXTENSIONS[table.extension[row]])
        return self.uris[row]


def data_uri(data: bytes, extension: str) -> str:
    """An image file as a JPEG data URI, at most HEIGHT pixels high."""
    image = Image.fromarray(decode(data, extension))
    if image.height > HEIGHT:
        image = image.resize((max(1, round(image.width * HEIGHT / image.height)), HEIGHT))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Shown:
    """A picture with its labels; `right`: whether it shows the query's person."""

    picture: str
    person: str
    camera: str
    right: bool | None = None  # None: the query itself


class Gallery:
    """The images of `table` by key; `features` [n, D] of its rows are needed for distances only."""

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
        """The image `key`; with the person of the query, also whether it is a match."""
        row, person = self.rows[key], self.person(key)
        camera = self.table.camera_names[self.table.camera[row]]
        right = None if query_person is None else person == query_person
        return Shown(self.pictures.uri(row), person, camera, right)


def person_names(dataset: Dataset) -> dict[int, str]:
    """Canonical names by row of the table of people."""
    people = dataset.people
    return dict(zip(people["row"].to_pylist(), people["person"].to_pylist(), strict=True))
