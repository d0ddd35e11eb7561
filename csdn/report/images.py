"""The page's images of people: pictures as data URIs, example queries chosen by rule, and text maps."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from csdn.data.batch import ImageReader
from csdn.data.catalog import Dataset, SampleTable
from csdn.data.images import EXTENSIONS, thumbnail
from csdn.data.shards import Place
from csdn.report.feature_space import person_names, share_between, unit_rows
from csdn.report.wording import direction_name, percent

HEIGHT, WIDTH = 144, 288  # pixels; larger images are scaled down to fit


class Pictures:
    """Reads images of a table from its shards, each once."""

    def __init__(self, table: SampleTable, shards: Place) -> None:
        self.table, self.reader = table, ImageReader(table, shards, (HEIGHT, HEIGHT))
        self.uris: dict[int, Markup] = {}

    def uri(self, row: int) -> Markup:
        """Row `row` of the table as `data:image/jpeg;base64,...`."""
        if row not in self.uris:
            (data,) = self.reader.contents([row])
            self.uris[row] = data_uri(data, EXTENSIONS[self.table.extension[row]])
        return self.uris[row]


def data_uri(data: bytes, extension: str) -> Markup:
    """An image file as a JPEG data URI of at most HEIGHT x WIDTH pixels."""
    return _embedded(thumbnail(data, extension, HEIGHT, WIDTH), "jpeg")


def _embedded(picture: bytes, kind: str) -> Markup:
    """A data URI. It is Markup because the page cuts long texts (csdn.report.wording.shown)."""
    return Markup(f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}")


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
        self, table: SampleTable, dataset: Dataset, shards: Place, features: np.ndarray | None = None
    ) -> None:
        self.table = table
        self.beginnings = table.digest.view(np.int64)[::4]  # the first 8 bytes of each digest
        self.order = np.argsort(self.beginnings)
        self.names = person_names(dataset)
        self.pictures = Pictures(table, shards)
        self.features = features

    def row(self, key: str) -> int:
        """The row of the table that has the image; the last one, if a benchmark has it twice."""
        digest = bytes.fromhex(key)
        beginning = np.frombuffer(digest, np.int64)[0]
        first, after = (np.searchsorted(self.beginnings, beginning, s, self.order) for s in ("left", "right"))
        return int(max(n for n in self.order[first:after] if self.table.digest[n].tobytes() == digest))

    def person(self, key: str) -> str:
        return self.names[int(self.table.person_row[self.row(key)])]

    def distance(self, one: str, other: str) -> float:
        """Cosine distance of two images."""
        if self.features is None:
            raise ValueError("distances need features")
        first, second = unit_rows(self.features[[self.row(one), self.row(other)]])
        return 1 - float(first @ second)

    def show(self, key: str, query_person: str | None = None) -> Shown:
        """The image `key`; with the person of the query, also whether it is a match."""
        row, person = self.row(key), self.person(key)
        camera = self.table.camera_names[self.table.camera[row]]
        right = None if query_person is None else person == query_person
        return Shown(self.pictures.uri(row), person, camera, right)


# Example queries, chosen by rule: ranked lists, and the easiest confusions.


Row = Mapping[str, Any]  # of evaluation/queries.parquet

LISTS = 40  # per direction at most, whatever the parameter is: the page embeds their pictures


@dataclass(frozen=True)
class RankedList:
    """A query with its ten top-ranked images; `missed` is the first match, if it is not among them."""

    query: Shown
    found: list[Shown]
    missed: Shown | None
    rank: int
    text: str


@dataclass(frozen=True)
class Direction:
    name: str
    failures: list[RankedList]
    even: list[RankedList]


def ranked_lists(queries: Sequence[Row], count: int, gallery: Gallery) -> list[Direction]:
    """`count` lists for each direction: half the hardest failures, half spread from best to worst."""
    count = min(count, LISTS)
    directions = []
    for direction, rows in by_direction(queries).items():
        failures, even = hardest(rows, count // 2), spread_out(rows, count - count // 2)
        directions.append(
            Direction(
                direction_name(direction),
                [_list(row, gallery) for row in failures],
                [_list(row, gallery) for row in even],
            )
        )
    return directions


def by_direction(queries: Sequence[Row]) -> dict[str, list[Row]]:
    """The queries of each direction that have a match in the gallery."""
    groups: dict[str, list[Row]] = {row["direction"]: [] for row in queries}
    for row in queries:
        if row["ap"] is not None:
            groups[row["direction"]].append(row)
    return groups


def spread_out(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` queries at equal steps from the highest AP to the lowest."""
    ordered = sorted(rows, key=lambda row: (-row["ap"], row["key"]))
    positions = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[position] for position in positions]


def hardest(rows: Sequence[Row], count: int) -> list[Row]:
    """The `count` queries whose first match ranks lowest, then by AP; one of each person.

    A query with a match at rank 1 is no failure, whatever its AP.
    """
    failed = (row for row in rows if row["first_rank"] > 1)
    worst_first = sorted(failed, key=lambda row: (-row["first_rank"], row["ap"], row["key"]))
    of_people: dict[str, Row] = {}
    for row in worst_first:
        of_people.setdefault(row["person"], row)
    return list(of_people.values())[:count]


def _list(row: Row, gallery: Gallery) -> RankedList:
    found, person = row["top_keys"], row["person"]
    missed = None if row["right_key"] in found else gallery.show(row["right_key"], person)
    text = f"first match at rank {row['first_rank']}, AP {percent(row['ap'])}"
    shown = [gallery.show(key, person) for key in found]
    return RankedList(gallery.show(row["key"]), shown, missed, row["first_rank"], text)


# Easiest confusions: a query, another person's image at rank 1, and the first match.


@dataclass(frozen=True)
class Confusion:
    """`distance` and `right_distance` are those of the query to the wrong image and to the first match."""

    query: Shown
    wrong: Shown
    distance: str
    right: Shown
    right_distance: str
    rank: int


def confusions(queries: Sequence[Row], count: int, gallery: Gallery) -> list[tuple[str, list[Confusion]]]:
    """(direction, the `count` wrong images at rank 1 that are nearest to their queries)."""
    found = []
    for direction, rows in by_direction(queries).items():
        chosen = nearest_wrong(rows, min(count, LISTS), gallery.person, gallery.distance)
        found.append((direction_name(direction), [_confusion(row, gallery) for row in chosen]))
    return found


def nearest_wrong(
    rows: Sequence[Row],
    count: int,
    person: Callable[[str], str],
    distance: Callable[[str, str], float],
) -> list[Row]:
    """Queries with another person at rank 1, the smallest distance first; each two people once."""
    wrong = [row for row in rows if row["top_keys"] and person(row["top_keys"][0]) != row["person"]]
    nearest_first = sorted(wrong, key=lambda row: (distance(row["key"], row["top_keys"][0]), row["key"]))
    of_pairs: dict[frozenset[str], Row] = {}
    for row in nearest_first:
        of_pairs.setdefault(frozenset((row["person"], person(row["top_keys"][0]))), row)
    return list(of_pairs.values())[:count]


def _confusion(row: Row, gallery: Gallery) -> Confusion:
    key, wrong, right = row["key"], row["top_keys"][0], row["right_key"]
    return Confusion(
        gallery.show(key),
        gallery.show(wrong, row["person"]),
        f"{gallery.distance(key, wrong):.2f}",
        gallery.show(right, row["person"]),
        f"{gallery.distance(key, right):.2f}",
        row["first_rank"],
    )


# Text maps as overlays of images, all with the same scale, and sentences on their values.


TEXT, ATTENTION = (255, 140, 0), (40, 150, 255)
STRONGEST = 0.8  # opacity of the highest value


@dataclass(frozen=True)
class Overlay:
    """An image with its two maps as data URIs of PNGs, one pixel a cell."""

    modality: str
    camera: str
    picture: str
    text: str
    attention: str


@dataclass(frozen=True)
class TextMapsShown:
    """`margin_high`, `attention_high`: the values with full opacity; `even`: uniform attention."""

    people: list[tuple[str, list[Overlay]]]
    margin_high: str
    attention_high: str
    even: str
    grid: tuple[int, int]
    words: list[str]


def text_maps_shown(
    images: Sequence[Mapping[str, str]], maps: Mapping[str, np.ndarray], gallery: Gallery
) -> TextMapsShown:
    """The section of evaluation/text_maps.*: rows `images` (key, person, modality), maps [n, h, w]."""
    margin = maps["own"] - maps["others"]
    highs = max(float(margin.max()), 1e-9), float(maps["attention"].max())
    people: dict[str, list[Overlay]] = {row["person"]: [] for row in images}
    for row, agreement, attention in zip(images, margin, maps["attention"], strict=True):
        shown = gallery.show(row["key"])
        people[row["person"]].append(
            Overlay(
                row["modality"],
                shown.camera,
                shown.picture,
                heat(agreement / highs[0], TEXT),
                heat(attention / highs[1], ATTENTION),
            )
        )
    return TextMapsShown(
        list(people.items()),
        f"{highs[0]:.2f}",
        f"{highs[1]:.2f}",
        f"{1 / (1 + margin[0].size):.2f}",
        margin.shape[1:],
        map_words(margin, maps["attention"]),
    )


def heat(values: np.ndarray, colour: tuple[int, int, int]) -> Markup:
    """Values [h, w] as a PNG data URI of one colour: transparent at 0 and below, most opaque at 1."""
    pixels = np.empty((*values.shape, 4), np.uint8)
    pixels[..., :3] = colour
    pixels[..., 3] = (255 * STRONGEST * np.clip(values, 0, 1)).round()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return _embedded(buffer.getvalue(), "png")


def map_words(margin: np.ndarray, attention: np.ndarray) -> list[str]:
    """Sentences on the maps [n, h, w]: `margin` (own text less the mean of the others) and attention."""
    cells = margin.reshape(len(margin), -1)
    found = [
        f"{percent(100 * float((cells > 0).mean()), 0)} of the cells shown agree more with the text of their "
        "own person than, on average, with the texts of the others."
    ]
    if len(cells) > 1 and cells.shape[1] > 1:
        place = share_between(cells.reshape(-1, 1), np.tile(np.arange(cells.shape[1]), len(cells)))
        found.append(
            f"{percent(100 * place, 0)} of the variance of these values is one pattern that all images share "
            "(the position of the cell); the rest differs from image to image."
        )
    if cells.std() > 0 and attention.std() > 0:
        alike = float(np.corrcoef(cells.ravel(), attention.ravel())[0, 1])
        found.append(f"The correlation with the pool's attention is {alike:.2f}.")
    return found
