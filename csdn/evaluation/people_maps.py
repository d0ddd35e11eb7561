"""Text maps of some training people, from the data's files: only training people have a text."""

from __future__ import annotations

from pathlib import Path

import torch

from csdn.data.dataset import Dataset
from csdn.data.feed import test_feed
from csdn.data.reading import shards_at
from csdn.data.records import MODALITIES
from csdn.evaluation.results import PeopleMaps
from csdn.evaluation.text_maps import TextMaps, examples, text_maps
from csdn.model import CSDN
from csdn.params import Params


def maps_of_people(model: CSDN, dataset: Dataset, params: Params, data: Path) -> PeopleMaps:
    """Maps of a visible and an infrared image of a few evenly chosen people; visible images first."""
    table, texts = dataset.train_table(), model.fused_text_features()
    names = dict(zip(dataset.people["row"].to_pylist(), dataset.people["person"].to_pylist(), strict=True))
    rows = examples(table.label, table.modality)
    size, normalize = params.model.image_size, params.model.normalize
    images, maps = [], []
    for code, modality in enumerate(MODALITIES):
        of = rows[table.modality[rows] == code]
        for found, pixels in test_feed(table, of, shards_at(params, data), size, normalize, len(of), 0):
            labels = torch.from_numpy(table.label[found]).to(texts.device)
            maps.append(text_maps(model, pixels.to(texts.device), modality.value, texts, labels))
        images += [
            {"key": str(table.key[row]), "person": names[table.person_row[row]], "modality": modality.value}
            for row in of
        ]
    return PeopleMaps(images, TextMaps(*map(torch.cat, zip(*maps, strict=True))))
