"""Whom suggestions may name, and by whom their thresholds are set: known people and test people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from markupsafe import Markup
from safetensors import SafetensorError
from safetensors.numpy import load_file

from csdn.curation.grouping import Images, Known, known_means
from csdn.data.batch import ImageReader
from csdn.data.catalog import MODALITIES, Dataset, SampleTable
from csdn.data.images import EXTENSIONS
from csdn.data.loader import ImageBatches
from csdn.data.shards import Place
from csdn.evaluation.open_set import read_thresholds
from csdn.runtime.errors import UserError
from csdn.search.embedder import BATCH, Embedder
from csdn.search.gallery import Gallery
from csdn.search.results import picture

Report = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class TestImages:
    """The test people's images, by which thresholds are set; people [n] are numbers."""

    images: Images
    people: np.ndarray


@dataclass(frozen=True)
class KnownPeople:
    """Known people: their mean features, their names by number, and a picture by number and modality code."""

    means: Known
    names: Sequence[str]
    show: Callable[[int, int], Markup | None]


# Test people and known people.


def read_test_images(dataset: Dataset, evaluation: Path, model: str) -> TestImages:
    """The test people's features as the stage evaluate wrote them; model: hash of the model in use.

    Raises UserError where they are missing, of another model or of other data.
    """
    advice = "`dvc repro evaluate` makes it again"
    stamp, table = read_thresholds(evaluation / "thresholds.json"), dataset.test_table()
    path = evaluation / "features.safetensors"
    if stamp.model != model:
        raise UserError(
            f"{evaluation}: the test people's features are of model {stamp.model[:12]}, the model in use is "
            f"{model[:12]}; {advice}, or name the model: --model DIR"
        )
    try:
        features = load_file(path)["trained"].astype(np.float32)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {advice}") from None
    except (SafetensorError, KeyError, OSError) as error:
        raise UserError(f"{path}: not readable ({error}); {advice}") from None
    if len(features) != len(table):
        raise UserError(f"{path}: features of {len(features)} images, there are {len(table)} now; {advice}")
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return TestImages(Images(features, table.modality, table.camera), table.label)


def known_of_project(
    dataset: Dataset, shards: Place, embedder: Embedder, test: TestImages, report: Report
) -> KnownPeople:
    """The people of the project's data; training people's images are embedded, test people's were."""
    tables = dataset.train_table(), dataset.test_table()
    names = dataset.people["person"].to_pylist()
    batches = (
        (features, tables[0].person_row[rows], tables[0].modality[rows])
        for rows, features in _embedded_rows(tables[0], shards, embedder, report)
    )
    tested = (test.images.features, tables[1].person_row, tables[1].modality)
    means = known_means(chain(batches, [tested]), len(names), embedder.dimension)
    return KnownPeople(means, names, partial(_shard_picture, tables, shards))


def _embedded_rows(
    table: SampleTable, shards: Place, embedder: Embedder, report: Report
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of a table and their features, a batch at a time."""
    batches = ImageBatches(table, shards, embedder.image_size, embedder.normalize, BATCH)
    reader, done = batches.rows(), 0
    for rows, modality in batches.steps():
        yield rows, embedder.embed(reader(rows), modality)
        done += len(rows)
        report(done, len(table))


def _shard_picture(tables: Sequence[SampleTable], shards: Place, person: int, modality: int) -> Markup | None:
    """The first image of a person in a modality."""
    for table in tables:
        rows = np.flatnonzero((table.person_row == person) & (table.modality == modality))
        if len(rows):
            (data,) = ImageReader(table, shards, (1, 1)).contents(rows[:1])
            return picture(lambda name, data=data: data, f"image.{EXTENSIONS[table.extension[rows[0]]]}")
    return None


def known_of_gallery(gallery: Gallery) -> KnownPeople:
    """The people whom a gallery names."""
    names, sources = dict[str, int](), dict[tuple[int, int], str]()
    batches = []
    for part in gallery.parts:
        rows = part.rows.select(["person", "modality", "source"]).to_pylist()
        of = np.array([names.setdefault(row["person"], len(names)) if row["person"] else -1 for row in rows])
        codes = np.array([MODALITIES.index(row["modality"]) for row in rows])
        for row, *key in zip(rows, of.tolist(), codes.tolist(), strict=True):
            sources.setdefault(tuple(key), row["source"])
        batches.append((part.features[of >= 0].astype(np.float32), of[of >= 0], codes[of >= 0]))

    def show(person: int, modality: int) -> Markup | None:
        source = sources.get((person, modality))
        return picture(gallery.read_image, source) if source else None

    return KnownPeople(known_means(batches, len(names), gallery.manifest.dimension), list(names), show)
