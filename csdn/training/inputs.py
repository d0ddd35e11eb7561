"""What both training stages start from: the samples of the training people, and a network.

The network has CLIP's weights, or a champion's where training starts from one (csdn.training.warm_start).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from csdn.data.catalog import Dataset, SampleTable, load_dataset
from csdn.data.state import stage_key
from csdn.model import CSDN
from csdn.model.clip import load_clip
from csdn.params import Params
from csdn.training.warm_start import (
    ChampionWeights,
    WarmStart,
    check_splits,
    read_champion_weights,
    transfer_rows,
)


@dataclass(frozen=True)
class TrainingInputs:
    """Training samples, the network before training, and the key of the stage's state.

    people: names in the order of labels. champion: its weights, which are in `model` already; None where
    training starts from CLIP.
    """

    table: SampleTable
    model: CSDN
    people: list[str]
    key: str
    champion: ChampionWeights | None = None


def training_inputs(
    params: Params, data: Path, stage: str, *extra: Path, warm: WarmStart | None = None
) -> TrainingInputs:
    """Read the training data and build the network.

    The key of the stage's state covers the data, the stage's parameters, CLIP's weights, the `extra` input
    files, and the champion that training starts from.
    """
    dataset = load_dataset(data)
    table = dataset.train_table()
    people = dataset.people["person"].take(np.unique(table.person_row)).to_pylist()
    clip = load_clip(params.model.clip, params.model.weights)
    model = CSDN.from_clip(
        clip,
        identities=len(people),
        image_size=tuple(params.model.image_size),
        stem=params.model.stem,
        integration=params.model.integration,
        seed=params.seed,
    )
    files = (data / "samples.parquet", data / "people.parquet", *extra)
    if warm is None:
        return TrainingInputs(table, model, people, stage_key(stage, params, clip.sha256, files))
    champion = read_champion_weights(warm, stage, model, params.model.normalize)
    check_splits(warm, champion, _test_people(dataset))
    transfer_rows(champion, model, people, params.seed)
    more = {"start": warm.sha256(stage)} | ({"warm": params.warm_start.prompts} if stage == "prompts" else {})
    key = stage_key(stage, params, clip.sha256, (*files, warm.config(stage)), **more)
    return TrainingInputs(table, model, people, key, champion)


def _test_people(dataset: Dataset) -> list[str]:
    columns = (dataset.people[name].to_pylist() for name in ("person", "split"))
    return [person for person, split in zip(*columns, strict=True) if split == "test"]
