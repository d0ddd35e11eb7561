"""Test features of several models, from one pass over the images where they take the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from csdn.data.dataset import Dataset, SampleTable
from csdn.data.feed import ImageWalk
from csdn.data.reading import shards_at
from csdn.evaluation.features import clip_embed, mirrored
from csdn.model import CSDN
from csdn.params import Params
from csdn.state import StageState
from csdn.walk import Embed, Embedder, embed_all

Progress = Callable[[str, str], AbstractContextManager[Callable[..., None]]]


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode and how it takes images; as_clip: its features are CLIP's own."""

    network: CSDN
    normalize: str
    as_clip: bool = False

    @property
    def images(self) -> tuple[tuple[int, ...], str]:
        """What decides the tensor of an image."""
        return tuple(self.network.config.image_size), self.normalize

    def embed(self, device: torch.device) -> Embed:
        network = self.network.to(device)
        return clip_embed(network) if self.as_clip else network.embed


def embed_models(
    models: Mapping[str, Model],
    table: SampleTable,
    params: Params,
    data: Path,
    state: StageState,
    progress: Progress,
    embedder: Embedder,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Features float32 [n, D] of each model for the n images of `table`, mirrored as the evaluation's are."""
    features = {}
    for number, images in enumerate(dict.fromkeys(model.images for model in models.values())):
        same = {name: model for name, model in models.items() if model.images == images}
        walk = ImageWalk(table, shards_at(params, data), *images, params.evaluation.batch)
        embedded = partial(
            embedder, walk, partial(_embeds, same, params.evaluation.mirror), params.scaling, device
        )
        with progress("embed", "images") as report:
            features |= embed_all(embedded, len(table), state.part(f"walk-{number}"), report)
    return features


def _embeds(models: Mapping[str, Model], mirror: bool, device: torch.device) -> dict[str, Embed]:
    embeds = {name: model.embed(device) for name, model in models.items()}
    return {name: mirrored(embed) for name, embed in embeds.items()} if mirror else embeds


def all_images(datasets: Sequence[Dataset]) -> tuple[SampleTable, list[np.ndarray]]:
    """Every test image of several data sets once, and of each data set the rows that its test images have.

    An image that both have is read where the first one has it. Labels of the table mean nothing.
    """
    samples = pa.concat_tables([dataset.samples for dataset in datasets])
    samples = samples.filter(pa.compute.equal(samples["side"], "test"))
    images = _names(samples)
    first = ~images.duplicated()
    table = Dataset(samples.filter(pa.array(first)), datasets[0].people).test_table()
    known = images[first]
    rows = []
    for dataset in datasets:
        tests = dataset.samples.filter(pa.compute.equal(dataset.samples["side"], "test"))
        rows.append(known.get_indexer(_names(tests)))
    return table, rows


def _names(samples: pa.Table) -> pd.MultiIndex:
    """What an image's features depend on: its bytes, and the modality that it is taken for."""
    return pd.MultiIndex.from_frame(samples.select(["key", "modality"]).to_pandas())
