"""The gate from files to files: champion and newcomer on the same people, queries and galleries.

Both answer the protocol of params.yaml on the test images of today's data, and on those of the data that the
champion was chosen on. Nobody is asked whom one of them was trained on. Each image is embedded once by each
model. Without a champion the newcomer is held against CLIP as it is, and chance. Written: metrics/gate.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from csdn.data.dataset import Dataset
from csdn.device import configure_torch
from csdn.errors import UserError
from csdn.evaluation.job import prepare, untrained
from csdn.evaluation.results import Experiment
from csdn.evaluation.scores import feature_distances, guesses
from csdn.files import write_json
from csdn.model import folded, load, load_clip, read_config
from csdn.params import Params
from csdn.retraining.comparison import compare, unjudged_pairs
from csdn.retraining.features import Model, Progress, all_images, embed_models
from csdn.retraining.gate import DATA, KEEP, TODAY, Comparison, Decision, as_json, decide, decide_first
from csdn.retraining.gate_inputs import GateInputs, read_inputs
from csdn.state import open_state, stage_key
from csdn.walk import Embedder, embedded_here

RESULT = Path("metrics/gate.json")
NOT_FINITE = "the newcomer's features are not finite numbers: its training went wrong"
Features = Mapping[str, np.ndarray]


def run_gate(
    params: Params, root: Path, progress: Progress, embedder: Embedder = embedded_here
) -> dict[str, Any]:
    """Decide whether models/embedding replaces the champion; returns what is written to metrics/gate.json.

    embedder: this one, or csdn.cluster's. Raises UserError where the champion's files are missing or others
    than champion.json names, where nobody is left to ask, or a shard is gone; nothing is written then.
    """
    device = configure_torch(params.scaling.threads, params.scaling.device)
    inputs = read_inputs(params, root)
    experiments = {data: _prepare(dataset, data, params) for data, dataset in inputs.datasets.items()}
    models, clip = _models(inputs, params, root)
    table, rows = all_images(list(inputs.datasets.values()))
    key = stage_key("evaluation", params, clip, inputs.files)
    with open_state("gate", key, root / ".state") as state:
        found = embed_models(models, table, params, root / "data", state, progress, embedder, device)
        features = {
            data: {name: values[where] for name, values in found.items()}
            for data, where in zip(experiments, rows, strict=True)
        }
        decision, comparisons = _decide(inputs, experiments, features, params)
        version = inputs.champion.version if inputs.champion else None
        notes = [*inputs.notes, *_unjudged(experiments, params)] if inputs.champion else inputs.notes
        result = as_json(decision, version, comparisons, notes)
        write_json(root / RESULT, result)
    return result


def _prepare(dataset: Dataset, data: str, params: Params) -> Experiment:
    try:
        return prepare(dataset, params.evaluation.protocol, **params.evaluation.options())
    except UserError as error:
        whose = "today's data" if data == TODAY else "the champion's data"
        raise UserError(f"gate, {whose}, without people whom a model was trained on: {error}") from None


def _unjudged(experiments: Mapping[str, Experiment], params: Params) -> list[str]:
    counts = {data: unjudged_pairs(experiment, params.gate) for data, experiment in experiments.items()}
    return [
        f"{count} pairs of cameras of {DATA[data]} are not judged: those with the most people are"
        for data, count in counts.items()
        if count
    ]


def _models(inputs: GateInputs, params: Params, root: Path) -> tuple[dict[str, Model], str]:
    """Newcomer and champion, and a hash of CLIP where that stands for the champion."""
    newcomer = _model(root / "models/embedding")
    if inputs.champion:
        return {"champion": _model(root / "champion/embedding"), "newcomer": newcomer}, ""
    clip = load_clip(params.model.clip, root / params.model.weights)
    as_it_is = Model(untrained(clip, newcomer.network), newcomer.normalize, as_clip=True)
    return {"champion": as_it_is, "newcomer": newcomer}, clip.sha256


def _model(folder: Path) -> Model:
    """A model that was trained; raises UserError where its folder has none."""
    normalize = read_config(folder).get("normalize")
    if normalize not in ("imagenet", "clip"):
        raise UserError(f"{folder / 'config.json'}: normalize = {normalize!r}; allowed: imagenet, clip")
    return Model(folded(load(folder)), normalize)


def _decide(
    inputs: GateInputs,
    experiments: Mapping[str, Experiment],
    features: Mapping[str, Features],
    params: Params,
) -> tuple[Decision, list[Comparison]]:
    if not all(np.isfinite(of["newcomer"]).all() for of in features.values()):
        return Decision(KEEP, [NOT_FINITE]), []
    rule, seed = params.gate, params.seed
    distances = {
        data: {name: feature_distances(values) for name, values in found.items()}
        for data, found in features.items()
    }
    comparisons = [
        one
        for data, of in distances.items()
        for one in compare(experiments[data], of["champion"], of["newcomer"], data, rule, seed)
    ]
    if not any(one.data == TODAY for one in comparisons):
        raise UserError(
            "nothing to decide by: no test image has a right image to find in a gallery; add images of test "
            "people in the other modality and by other cameras"
        )
    if inputs.champion:
        return decide(comparisons, rule), comparisons
    newcomer = distances[TODAY]["newcomer"]
    chance = compare(experiments[TODAY], guesses(seed, 0), newcomer, TODAY, rule, seed)
    return decide_first(comparisons, chance), []
