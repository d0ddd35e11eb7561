"""Warm start: training goes on from a champion instead of from CLIP (docs/warm-start.md).

People keep their rows by name, whatever their numbers are today; who has left drops out; who is new gets a
row of the usual initial values, which is a function of the seed and the name alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csdn.data.catalog import MODALITIES
from csdn.data.rng import Stream, generator
from csdn.model import CSDN
from csdn.model.network import row_deviation, with_people
from csdn.model.weights import misfits, read_safetensors, refuse, shapes
from csdn.params import Params
from csdn.runtime.documents import read_json
from csdn.runtime.errors import UserError
from csdn.training.champion import Start

if TYPE_CHECKING:
    from csdn.training.inputs import TrainingInputs


WEIGHTS = {"prompts": "prompts.safetensors", "embedding": "model.safetensors"}
NOTHING = 'or train from nothing: set `"start": null` in champion.json'
# What must be the champion's: the field of its config.json -> the key of params.yaml.
SAME = {
    "clip": "model.clip",
    "clip_sha256": "model.weights (the SHA-256 of the file)",
    "image_size": "model.image_size",
    "stem": "model.stem",
    "integration": "model.integration",
}
SHOWN = 5  # people named in an error


@dataclass(frozen=True)
class WarmStart:
    """The champion that champion.json names as `start`, and the folder that its files were fetched to."""

    start: Start
    folder: Path = Path("champion")

    def config(self, stage: str) -> Path:
        """Of stage "prompts" or "embedding"; beside the weights it says which row is whose."""
        return self.folder / stage / "config.json"

    def sha256(self, stage: str) -> str:
        return getattr(self.start, stage)


class ChampionWeights(NamedTuple):
    """What one stage of the champion had learnt: row n of the tensors that have people is people[n]'s."""

    people: list[str]
    tensors: dict[str, Tensor]


def warm_params(params: Params) -> Params:
    """The parameters with those of `warm` in the section `embedding`, whose schedule is shrunk alike."""
    warm, embedding = params.warm_start, params.embedding
    share, schedule = warm.epochs / embedding.epochs, embedding.schedule
    shrunk = {
        "warmup_epochs": share * schedule.warmup_epochs,
        "milestones": [share * epoch for epoch in schedule.milestones],
    }
    changed = warm.model_dump(exclude={"prompts"}) | {"schedule": schedule.model_copy(update=shrunk)}
    return params.model_copy(update={"embedding": embedding.model_copy(update=changed)})


def read_known(warm: WarmStart, stage: str, model: CSDN, normalize: str) -> ChampionWeights:
    """What the champion's `stage` ("prompts" or "embedding") had learnt, for a network like `model`.

    Raises UserError where a file of the champion is missing or another one, of either stage: what fails in
    the second must not cost the first; and where the champion is a network of another kind.
    """
    for name in WEIGHTS:
        _check_file(warm, name)
    described = _read_json(warm.config("embedding"), warm)
    ours = json.loads(json.dumps(model.config.to_json()))
    _check_kind(warm, described.get("model", {}), ours, described.get("normalize"), normalize)
    people = _read_json(warm.config(stage), warm).get("people")
    known = ChampionWeights(people, read_safetensors(warm.folder / stage / WEIGHTS[stage]))
    _check_shapes(warm, stage, known, model)
    return known


def transfer_rows(known: ChampionWeights, model: CSDN, people: Sequence[str], seed: int) -> None:
    """Put what is known into `model`, whose row n is people[n]'s; new people's rows are drawn."""
    state = model.state_dict()
    for name in state.keys() & known.tensors.keys():
        deviation = row_deviation(name)
        if deviation is None:
            state[name] = known.tensors[name]
        else:
            state[name] = _rows(known.tensors[name], known.people, people, (seed, name, deviation))
    model.load_state_dict(state)


def check_splits(warm: WarmStart, known: ChampionWeights, test_people: Sequence[str]) -> None:
    """Raise UserError where the champion was trained on people who are test people today."""
    seen = sorted(set(known.people) & set(test_people))
    if seen:
        more = ", ..." if len(seen) > SHOWN else ""
        raise UserError(
            f"champion.json: training starts from {warm.start.version}, and {len(seen)} people that it was "
            f"trained on are test people today ({', '.join(seen[:SHOWN])}{more}): figures on them would say "
            f"nothing. Set the section data of params.yaml back, {NOTHING}"
        )


def _rows(
    tensor: Tensor, known: Sequence[str], people: Sequence[str], draw: tuple[int, str, float]
) -> Tensor:
    """A row for each of `people`: the one of that name, or one that is drawn."""
    row = {person: n for n, person in enumerate(known)}
    return torch.stack(
        [tensor[row[name]] if name in row else _drawn(name, tensor.shape[1:], *draw) for name in people]
    )


def _drawn(person: str, shape: Sequence[int], seed: int, tensor: str, deviation: float) -> Tensor:
    """Normal values: a function of the seed, the person's name and the tensor's, of nobody else."""
    counter = int.from_bytes(hashlib.sha256(f"{tensor}\n{person}".encode()).digest()[:8])
    draws = generator(seed, Stream.NEW_PERSON, counter).standard_normal(tuple(shape), np.float32)
    return torch.from_numpy(draws) * deviation


def _check_file(warm: WarmStart, stage: str) -> None:
    path, version = warm.folder / stage / WEIGHTS[stage], warm.start.version
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise _not_fetched(path, version) from None
    if found != warm.sha256(stage):
        raise UserError(
            f"{path}: its SHA-256 is {found}; that of {version} is {warm.sha256(stage)} (champion.json, "
            f"start.{stage}). `csdn fetch-champion` fetches the champion's files"
        )


def _not_fetched(path: Path, version: str) -> UserError:
    return UserError(
        f"{path}: no such file, and training starts from {version} (champion.json); `csdn fetch-champion` fetches "
        f"the champion's files, {NOTHING}"
    )


def _read_json(path: Path, warm: WarmStart) -> dict[str, Any]:
    if not path.exists():
        raise _not_fetched(path, warm.start.version)
    advice = "`csdn fetch-champion` fetches the champion's files"
    found = read_json(path, advice)
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged; {advice}")
    return found


def _check_kind(
    warm: WarmStart, champion: Mapping[str, Any], ours: Mapping[str, Any], its_normalize: Any, normalize: str
) -> None:
    """Raise UserError naming each parameter that makes another network than the champion."""
    pairs = {key: (champion.get(field), ours[field]) for field, key in SAME.items()}
    pairs["model.normalize"] = (its_normalize, normalize)
    lines = [f"{key} is {now}; the champion has {then}" for key, (then, now) in pairs.items() if then != now]
    source = f"params.yaml does not fit {warm.start.version}, from which training starts (champion.json)"
    refuse(source, lines, f"set back what differs, {NOTHING}")


def _check_shapes(warm: WarmStart, stage: str, known: ChampionWeights, model: CSDN) -> None:
    """Raise UserError where the tensors are not those of such a network with the people of config.json."""
    path = warm.config(stage)
    if not isinstance(known.people, list) or not all(isinstance(name, str) for name in known.people):
        raise UserError(f"{path}: no list `people`; `csdn fetch-champion` fetches the champion's files")
    needed = {
        name: shape if row_deviation(name) is None else [len(known.people), *shape[1:]]
        for name, shape in shapes(model.state_dict()).items()
        if stage == "embedding" or name.partition(".")[0] in ("prompts", "integration")
    }
    if stage == "prompts":
        needed["fused_text"] = [len(known.people), model.config.embed_dim]
    lines = misfits(needed, shapes(known.tensors))
    refuse(
        str(path.with_name(WEIGHTS[stage])), lines, f"does not fit {path}; fetch both: `csdn fetch-champion`"
    )


# Stage 1 of people whom the champion does not know: a task of their own, beside rows that stay.


def new_rows(inputs: TrainingInputs) -> np.ndarray:
    """Rows, rising, of the people whom the champion does not know."""
    known = set(inputs.known.people)
    return np.array([n for n, person in enumerate(inputs.people) if person not in known], np.int64)


def new_identities(inputs: TrainingInputs, new: np.ndarray) -> TrainingInputs:
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
def proxy_negatives(inputs: TrainingInputs, new: np.ndarray, embeddings: Tensor) -> Tensor:
    """What stands for images of the people who are not new, [2 * known, d]: their two texts.

    They are as long as the new people's images [images, d] are on average, as dot products are compared.
    Without them new texts also fit images of known people, of which none is read.
    """
    known = torch.from_numpy(np.setdiff1d(np.arange(len(inputs.people)), new)).to(embeddings.device)
    texts = [inputs.model.text_features(modality.value, known) for modality in MODALITIES]
    return F.normalize(torch.cat(texts)) * embeddings.norm(dim=1).mean()


@torch.no_grad()
def merge_prompts(inputs: TrainingInputs, theirs: TrainingInputs | None, new: np.ndarray) -> Tensor:
    """Copy the tokens that new identities have learnt into the network; returns the fused text table.

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
