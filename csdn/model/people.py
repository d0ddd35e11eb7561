"""A network's rows of people: its tokens and classifiers have one for each, all other tensors know nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from csdn.model.network import CLASSIFIER_DEVIATION, CSDN
from csdn.model.prompts import DEVIATION


def row_deviation(name: str) -> float | None:
    """Of the rows of the tensor `name` before training; None where its rows are not people's."""
    if name.startswith("prompts.tokens."):
        return DEVIATION
    return CLASSIFIER_DEVIATION if name.endswith("_neck.classifier.weight") else None


def with_people(model: CSDN, rows: Sequence[int]) -> CSDN:
    """A copy of `model` (on the CPU, in evaluation mode) that knows the people of these rows alone."""
    kept = torch.tensor(rows, dtype=torch.int64)
    state = {
        name: tensor if row_deviation(name) is None else tensor[kept]
        for name, tensor in model.state_dict().items()
    }
    with torch.random.fork_rng(devices=[]):
        copy = CSDN(replace(model.config, identities=len(rows)))
    copy.load_state_dict(state)
    return copy.eval()
