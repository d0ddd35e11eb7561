"""What training starts from: the samples, and a network with CLIP's weights or a champion's (warm start).

docs/warm-start.md has the reasons and the figures of the warm start.

Tokens and classifiers have a row for each identity. Rows are transferred by the identity's name; identities
that are gone lose theirs; a new identity gets random initial values, a function of the seed and its name
only.

1. Reading the champion's weights, with checks that they fit, and transferring them into the network.
2. `training_inputs`: what both stages start from.
3. Stage 1 for new identities only: their prompts are learnt, all other texts stay the champion's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csdn.data.catalog import MODALITIES, Dataset, SampleTable, load_dataset
from csdn.data.checkpoint_store import stage_key
from csdn.data.rng import Stream, generator
from csdn.model import CSDN
from csdn.model.clip import load_clip
from csdn.model.network import row_std, with_identities
from csdn.model.weights import misfits, read_safetensors, refuse, shapes
from csdn.params import Params
from csdn.runtime.documents import read_json
from csdn.runtime.errors import UserError
from csdn.runtime.files import file_sha256
from csdn.training.champion import Start

# 1. Reading and transferring the champion's weights.


WEIGHTS = {"prompts": "prompts.safetensors", "embedding": "model.safetensors"}
FROM_CLIP = 'or train from CLIP: set `"start": null` in champion.json'
# What must equal the champion's: the field of its config.json -> the key of params.yaml.
MUST_MATCH = {
    "clip": "model.clip",
    "clip_sha256": "model.weights (the SHA-256 of the file)",
    "image_size": "model.image_size",
    "stem": "model.stem",
    "integration": "model.integration",
}
SHOWN = 5  # people named in an error


@dataclass(frozen=True)
class WarmStart:
    """The champion that champion.json names as `start`, and the folder with its files."""

    start: Start
    folder: Path = Path("champion")

    def config(self, stage: str) -> Path:
        """The config.json of stage "prompts" or "embedding"; it lists the people in the order of rows."""
        return self.folder / stage / "config.json"

    def sha256(self, stage: str) -> str:
        return getattr(self.start, stage)


class ChampionWeights(NamedTuple):
    """The weights of one stage of the champion; row n of the tensors with identities is people[n]'s."""

    people: list[str]
    tensors: dict[str, Tensor]


def warm_params(params: Params) -> Params:
    """The parameters with `warm_start` applied to the section `embedding`; its schedule is scaled."""
    warm, embedding = params.warm_start, params.embedding
    scale, schedule = warm.epochs / embedding.epochs, embedding.schedule
    scaled = {
        "warmup_epochs": scale * schedule.warmup_epochs,
        "milestones": [scale * epoch for epoch in schedule.milestones],
    }
    changed = warm.model_dump(exclude={"prompts"}) | {"schedule": schedule.model_copy(update=scaled)}
    return params.model_copy(update={"embedding": embedding.model_copy(update=changed)})


def read_champion_weights(warm: WarmStart, stage: str, model: CSDN, normalize: str) -> ChampionWeights:
    """The weights of the champion's `stage` ("prompts" or "embedding"), for a network like `model`.

    Raises UserError where a file of the champion is missing or has another hash, and where the champion is a
    network of another kind. The files of both stages are checked, so that stage 1 does not run for hours
    before stage 2 fails.
    """
    for name in WEIGHTS:
        _check_file(warm, name)
    described = _read_json(warm.config("embedding"), warm)
    ours = json.loads(json.dumps(model.config.to_json()))
    _check_kind(warm, described.get("model", {}), ours, described.get("normalize"), normalize)
    people = _read_people(warm.config(stage), warm)
    champion = ChampionWeights(people, read_safetensors(warm.folder / stage / WEIGHTS[stage]))
    _check_shapes(warm, stage, champion, model)
    return champion


def transfer_rows(champion: ChampionWeights, model: CSDN, people: Sequence[str], seed: int) -> None:
    """Load the champion's weights into `model`, whose row n is people[n]'s; new rows are drawn."""
    state = model.state_dict()
    row = {person: n for n, person in enumerate(champion.people)}
    for name in state.keys() & champion.tensors.keys():
        tensor, std = champion.tensors[name], row_std(name)
        state[name] = tensor
        if std is not None:
            shape = tensor.shape[1:]
            state[name] = torch.stack(
                [
                    tensor[row[person]] if person in row else _initial_row(person, shape, seed, name, std)
                    for person in people
                ]
            )
    model.load_state_dict(state)


def check_splits(warm: WarmStart, champion: ChampionWeights, test_people: Sequence[str]) -> None:
    """Raise UserError where the champion was trained on people who are test people now."""
    seen = sorted(set(champion.people) & set(test_people))
    if seen:
        more = ", ..." if len(seen) > SHOWN else ""
        raise UserError(
            f"champion.json: training starts from {warm.start.version}, and {len(seen)} people that it was "
            f"trained on are test people now ({', '.join(seen[:SHOWN])}{more}), which would make the figures "
            f"meaningless. Restore the section data of params.yaml, {FROM_CLIP}"
        )


def _initial_row(person: str, shape: Sequence[int], seed: int, tensor: str, std: float) -> Tensor:
    """Normal values, a function of the seed and the names of the person and the tensor only."""
    counter = int.from_bytes(hashlib.sha256(f"{tensor}\n{person}".encode()).digest()[:8])
    draws = generator(seed, Stream.NEW_PERSON, counter).standard_normal(tuple(shape), np.float32)
    return torch.from_numpy(draws) * std


def _fetch(version: str) -> str:
    """Advice. Without the version the command fetches the champion, which may be a later one."""
    return f"`csdn fetch-champion {version}` fetches the files of {version}"


def _check_file(warm: WarmStart, stage: str) -> None:
    path, version = warm.folder / stage / WEIGHTS[stage], warm.start.version
    try:
        found = file_sha256(path)
    except FileNotFoundError:
        raise _not_fetched(path, version) from None
    if found != warm.sha256(stage):
        raise UserError(
            f"{path}: its SHA-256 is {found}; that of {version} is {warm.sha256(stage)} (champion.json, "
            f"start.{stage}). {_fetch(version)}"
        )


def _not_fetched(path: Path, version: str) -> UserError:
    return UserError(
        f"{path}: no such file, and training starts from {version} (champion.json); {_fetch(version)}, "
        f"{FROM_CLIP}"
    )


def _read_json(path: Path, warm: WarmStart) -> dict[str, Any]:
    if not path.exists():
        raise _not_fetched(path, warm.start.version)
    advice = _fetch(warm.start.version)
    found = read_json(path, advice)
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged; {advice}")
    return found


def _read_people(path: Path, warm: WarmStart) -> list[str]:
    people = _read_json(path, warm).get("people")
    if not isinstance(people, list) or not all(isinstance(name, str) for name in people):
        raise UserError(f"{path}: the list `people` is missing; {_fetch(warm.start.version)}")
    return people


def _check_kind(
    warm: WarmStart, champion: Mapping[str, Any], ours: Mapping[str, Any], its_normalize: Any, normalize: str
) -> None:
    """Raise UserError naming each parameter that makes another kind of network than the champion."""
    pairs = {key: (champion.get(field), ours[field]) for field, key in MUST_MATCH.items()}
    pairs["model.normalize"] = (its_normalize, normalize)
    lines = [f"{key} is {now}; the champion has {then}" for key, (then, now) in pairs.items() if then != now]
    source = f"params.yaml does not fit {warm.start.version}, from which training starts (champion.json)"
    refuse(source, lines, f"restore what differs, {FROM_CLIP}")


def _check_shapes(warm: WarmStart, stage: str, champion: ChampionWeights, model: CSDN) -> None:
    """Raise UserError where the tensors are not of a network like `model` with the champion's people."""
    path = warm.config(stage)
    needed = {
        name: shape if row_std(name) is None else [len(champion.people), *shape[1:]]
        for name, shape in shapes(model.state_dict()).items()
        if stage == "embedding" or name.partition(".")[0] in ("prompts", "integration")
    }
    if stage == "prompts":
        needed["fused_text"] = [len(champion.people), model.config.embed_dim]
    lines = misfits(needed, shapes(champion.tensors))
    refuse(str(path.with_name(WEIGHTS[stage])), lines, f"does not fit {path}; {_fetch(warm.start.version)}")


# 2. What both stages start from.


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
    height, width = params.model.image_size
    model = CSDN.from_clip(
        clip,
        identities=len(people),
        image_size=(height, width),
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


# 3. Stage 1 for the identities that the champion was not trained on. They are trained by themselves: all
# other rows stay as they are.


def new_rows(inputs: TrainingInputs, champion: ChampionWeights) -> np.ndarray:
    """The rows of new identities, in ascending order."""
    known = set(champion.people)
    return np.array([n for n, person in enumerate(inputs.people) if person not in known], np.int64)


def new_identities(inputs: TrainingInputs, new: np.ndarray) -> TrainingInputs:
    """The inputs of these rows' identities only: their images, relabelled, and a network with their rows.

    In the whole network weight decay would change the rows of the others, which have no gradient.
    """
    device = next(inputs.model.parameters()).device
    return replace(
        inputs,
        table=inputs.table.of_people(new),
        model=with_identities(inputs.model, new.tolist()).to(device),
        people=[inputs.people[n] for n in new],
    )


@torch.no_grad()
def proxy_negatives(inputs: TrainingInputs, new: np.ndarray, embeddings: Tensor) -> Tensor:
    """The two texts of each known identity, [2 * known, d], in place of their images, which are not read.

    Without these negatives the new texts would match images of known identities, too. SupCon compares dot
    products, so they are scaled to the mean length of the new identities' embeddings [images, d].
    """
    known = torch.from_numpy(np.setdiff1d(np.arange(len(inputs.people)), new)).to(embeddings.device)
    texts = [inputs.model.text_features(modality.value, known) for modality in MODALITIES]
    return F.normalize(torch.cat(texts)) * embeddings.norm(dim=1).mean()


@torch.no_grad()
def merge_prompts(
    inputs: TrainingInputs, champion: ChampionWeights, trained: TrainingInputs | None, new: np.ndarray
) -> Tensor:
    """Copy the tokens of new identities from `trained` into the network; returns the fused text table.

    The rows of known identities are copied from the champion's table: computing them again could change last
    digits.
    """
    row = {person: n for n, person in enumerate(champion.people)}
    before = champion.tensors["fused_text"]
    fused = before.new_empty(len(inputs.people), before.shape[1])
    known = np.setdiff1d(np.arange(len(inputs.people)), new)
    fused[known] = before[[row[inputs.people[n]] for n in known]]
    if trained:
        fused[new] = trained.model.fused_text_features().cpu()
        for name, tokens in inputs.model.prompts.tokens.items():
            tokens[torch.from_numpy(new).to(tokens.device)] = trained.model.prompts.tokens[name]
    return fused
