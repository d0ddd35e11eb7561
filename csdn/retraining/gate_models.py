"""The models that the gate compares: the people they saw in training, their networks, and their features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import torch

from csdn.data.catalog import (
    MODALITIES,
    SAMPLES_SCHEMA,
    Dataset,
    SampleTable,
    digests,
    image_numbers,
    positions,
    to_table,
)
from csdn.data.checkpoint_store import CheckpointStore
from csdn.data.features import Embed, Embedder, extract_features
from csdn.data.loader import ImageBatches
from csdn.data.shards import shards_at
from csdn.evaluation.baselines import clip_embed, flipped
from csdn.model import CSDN, fuse_batch_norms, load, read_config
from csdn.model.device import in_precision
from csdn.params import Params
from csdn.runtime.errors import UserError

Progress = Callable[[str, str], AbstractContextManager[Callable[..., None]]]


# The identities that a model saw in training.


def people_of(model: Path) -> list[str]:
    """The people that a model was trained on; raises UserError if its config.json does not name them."""
    people = read_config(model).get("people")
    if not isinstance(people, list) or not all(isinstance(name, str) for name in people):
        raise UserError(
            f"{model / 'config.json'}: does not name the people it was trained on, so they cannot be "
            "excluded from the comparison; `dvc repro` makes a model that names them"
        )
    return people


@dataclass(frozen=True)
class SeenData:
    """What a model saw in training: people by their canonical names of that time, images by their keys."""

    people: frozenset[str]
    images: pa.ChunkedArray

    def __or__(self, other: SeenData) -> SeenData:
        return SeenData(self.people | other.people, _concatenated(self.images, other.images))


def seen_in_training(people: Iterable[str], dataset: Dataset) -> SeenData:
    """What a model saw: `people` as its config.json names them, and the training images of its data."""
    train = to_table(dataset.samples, ["key"], ds.field("split") == "train")
    return SeenData(frozenset(people), train["key"])


def exclude_seen_identities(dataset: Dataset, seen: SeenData, person: Callable[[str], str]) -> Dataset:
    """The test images of the people that no model has seen, neither by name nor by an image.

    person: maps a name to today's canonical name, so that a person is recognised under an alias made since.
    """
    tests = test_images(dataset)
    names = seen.people | {person(name) for name in seen.people}
    known = [name in names or person(name) in names for name in dataset.people["person"].to_pylist()]
    by_name = dataset.people["row"].filter(pa.array(known, pa.bool_()))
    images = to_table(tests, ["person_row", "key"])
    by_image = images["person_row"].filter(pc.is_in(images["key"], value_set=seen.images))
    excluded = _concatenated(by_name, by_image).combine_chunks()
    return Dataset(tests.filter(~ds.field("person_row").isin(excluded)), dataset.people)


def without_drops(dataset: Dataset, drops: Iterable[str]) -> Dataset:
    """The data set without the images of some drops, by id."""
    excluded = ds.field("drop").isin(pa.array(list(drops), pa.string()))
    return Dataset(dataset.samples.filter(~excluded), dataset.people)


def test_images(dataset: Dataset) -> ds.Dataset:
    return dataset.samples.filter(ds.field("split") == "test")


def values_of(samples: ds.Dataset, column: str) -> list[Any]:
    """The distinct values of a column."""
    return to_table(samples, [column])[column].unique().to_pylist()


def _concatenated(first: pa.ChunkedArray, second: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([*first.chunks, *second.chunks], first.type)


# Models and their features: one pass over the images for models with the same preprocessing.


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode and its preprocessing; as_clip: its features are CLIP's own."""

    network: CSDN
    normalize: str
    as_clip: bool = False

    @property
    def preprocessing(self) -> tuple[tuple[int, ...], str]:
        """(image size, normalisation): all that decides the tensor of an image."""
        return tuple(self.network.config.image_size), self.normalize

    def embed(self, device: torch.device) -> Embed:
        network = self.network.to(device)
        return clip_embed(network) if self.as_clip else network.embed


def trained_model(folder: Path) -> Model:
    """The model in a folder; raises UserError if there is none."""
    normalize = read_config(folder).get("normalize")
    if normalize not in ("imagenet", "clip"):
        raise UserError(f"{folder / 'config.json'}: normalize = {normalize!r}; allowed: imagenet, clip")
    return Model(fuse_batch_norms(load(folder)), normalize)


def embed_models(
    models: Mapping[str, Model],
    table: SampleTable,
    params: Params,
    data: Path,
    state: CheckpointStore,
    progress: Progress,
    embedder: Embedder,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Features float32 [n, D] of each model for the n images of `table`, with the evaluation's flip TTA."""
    features: dict[str, np.ndarray] = {}
    for number, preprocessing in enumerate(dict.fromkeys(model.preprocessing for model in models.values())):
        same = {name: model for name, model in models.items() if model.preprocessing == preprocessing}
        batches = ImageBatches(table, shards_at(params, data), *preprocessing, params.evaluation.batch_size)
        make_embeds = partial(_embeds, same, params.evaluation.flip_tta, params.training.precision)
        extract = partial(embedder, batches, make_embeds, params, device)
        with progress("embed", "images") as report:
            features |= extract_features(extract, len(table), state.part(f"features-{number}"), report)
    return features


def _embeds(
    models: Mapping[str, Model], flip_tta: bool, precision: str, device: torch.device
) -> dict[str, Embed]:
    embeds = {name: in_precision(model.embed(device), precision, device) for name, model in models.items()}
    return {name: flipped(embed) for name, embed in embeds.items()} if flip_tta else embeds


def unique_images(datasets: Sequence[Dataset]) -> tuple[SampleTable, list[np.ndarray]]:
    """Each test image of several data sets once, and for each data set the rows of its test images.

    An image that several data sets have is read where the first one has it. The table's labels have no
    meaning.
    """
    columns = [name for name in SAMPLES_SCHEMA.names if name not in ("path", "drop", "places")]
    tests = [to_table(test_images(one), columns) for one in datasets]
    samples = pa.concat_tables(tests)
    # What an image's features depend on: its bytes (by key) and its modality.
    numbers = image_numbers(digests(samples.to_batches()))
    images = len(MODALITIES) * numbers + positions(samples["modality"], MODALITIES)
    _, first, same = np.unique(images, return_index=True, return_inverse=True)
    rows = np.argsort(np.argsort(first))[same]
    table = Dataset(ds.dataset(samples.take(np.sort(first))), datasets[0].people).test_table()
    return table, np.split(rows, np.cumsum([one.num_rows for one in tests])[:-1])
