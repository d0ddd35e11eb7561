"""Stage 1 of people whom the champion does not know: a task of their own, beside rows that stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from csdn.data.records import MODALITIES
from csdn.model.people import with_people
from csdn.training.inputs import TrainingInputs


def new_rows(inputs: TrainingInputs) -> np.ndarray:
    """Rows, rising, of the people whom the champion does not know."""
    known = set(inputs.known.people)
    return np.array([n for n, person in enumerate(inputs.people) if person not in known], np.int64)


def newcomers(inputs: TrainingInputs, new: np.ndarray) -> TrainingInputs:
    """The same with the people of these rows alone: their images, numbered anew, and a network of their rows.

    Weight decay would move the rows of others, who have no gradient.
    """
    device = next(inputs.model.parameters()).device
    return replace(
        inputs,
        table=inputs.table.of_people(new),
        model=with_people(inputs.model, new.tolist()).to(device),
        people=[inputs.people[n] for n in new],
    )


@torch.no_grad()
def texts_of_known(inputs: TrainingInputs, new: np.ndarray) -> Tensor:
    """Both texts, [2 * known, d], of the people that are not new: what a new text must not be taken for."""
    known = torch.from_numpy(np.setdiff1d(np.arange(len(inputs.people)), new))
    known = known.to(next(inputs.model.parameters()).device)
    return torch.cat([inputs.model.text_features(modality.value, known) for modality in MODALITIES])


@torch.no_grad()
def put_back(inputs: TrainingInputs, theirs: TrainingInputs | None, new: np.ndarray) -> Tensor:
    """Copy the tokens that newcomers have learnt into the network; returns the fused text table.

    In it the rows of the known are the champion's own: computed again, last digits might differ.
    """
    at = {person: n for n, person in enumerate(inputs.known.people)}
    champions = inputs.known.tensors["fused_text"]
    fused = champions.new_empty(len(inputs.people), champions.shape[1])
    known = np.setdiff1d(np.arange(len(inputs.people)), new)
    fused[known] = champions[[at[inputs.people[n]] for n in known]]
    if theirs:
        fused[new] = theirs.model.fused_text_features().cpu()
        for name, tokens in inputs.model.prompts.tokens.items():
            tokens[torch.from_numpy(new).to(tokens.device)] = theirs.model.prompts.tokens[name]
    return fused
