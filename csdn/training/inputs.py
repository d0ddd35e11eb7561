"""What both training stages start from: the samples of the training people, and a CSDN built on CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from csdn.data.dataset import SampleTable, load_dataset
from csdn.model import CSDN
from csdn.model.clip import load_clip
from csdn.params import Params
from csdn.state import stage_key


@dataclass(frozen=True)
class TrainingInputs:
    """Training samples, the network before its training, and the people's names in order of their labels."""

    table: SampleTable
    model: CSDN
    people: list[str]
    key: str


def training_inputs(params: Params, data: Path, stage: str, *extra: Path) -> TrainingInputs:
    """Read the training data and build the network; `key` names the stage's state.

    The key covers the data, the stage's parameters, CLIP's weights and the `extra` input files.
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
    return TrainingInputs(table, model, people, stage_key(stage, params, clip.sha256, files))
