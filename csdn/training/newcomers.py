"""Stage 1 of people whom the champion does not know: a task of their own, beside rows that stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
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
def stand_ins(inputs: TrainingInputs, new: np.ndarray, embeddings: Tensor) -> Tensor:
    """What stands for images of the people who are not new, [2 * known, d]: their two texts.

    They are as long as the new people's images [images, d] are on average, as dot products are compared.
    Without them new texts also fit images of known people, of which none is read.
    """
    known = torch.from_numpy(np.setdiff1d(np.arange(len(inputs.people)), new)).to(embeddings.device)
    texts = [inputs.model.text_features(modality.value, known) for modality in MODALITIES]
    return F.normalize(torch.cat(texts)) * embeddings.norm(dim=1).mean()


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
