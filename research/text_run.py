"""One run for research/text.py: the people, stage 1 of a seed, stage 2 with one table, its figures."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from text_tables import derangement, gaussian, prototypes, rotated
from torch import Tensor

from csdn.data.catalog import load_dataset
from csdn.data.features import MakeEmbeds, extract_features, extract_local
from csdn.data.loader import ImageBatches, TrainLoader, TrainSource
from csdn.data.shards import shards_at
from csdn.data.checkpoint_store import CheckpointStore
from csdn.evaluation.run import Experiment, embedders, prepare, test_batches
from csdn.evaluation.distances import FeatureDistances
from csdn.evaluation.scores import trial_metrics, trial_statistics
from csdn.ingest.run import ingest
from csdn.ingest.sync import open_drop
from csdn.model import fuse_batch_norms, load_clip
from csdn.model.device import configure_torch
from csdn.params import Params, parse_params
from csdn.runtime.documents import read_yaml
from csdn.runtime.files import atomic_folder
from csdn.synthetic.sets import MARKER, PeopleSet, images_of, png
from csdn.training.checkpoint import LocalState
from csdn.training.embedding import load_prompts, train_embedding
from csdn.training.warm_start import TrainingInputs, training_inputs
from csdn.training.prompts import image_batches, run_prompts

ROOT = Path(__file__).parents[1]
TABLES = ("none", "text", "permuted", "rotated", "gaussian", "prototypes", "classifier")
WITHOUT_HSE = ("none", "classifier")
DIRECTIONS = {"infrared_to_visible": "ir_to_vis", "visible_to_infrared": "vis_to_ir"}
METRICS = ("rank1", "mAP")
CPU = torch.device("cpu")


def ingested(setting: Mapping[str, Any]) -> Path:
    """Folder of the people's images and data; made once."""
    folder = Path("-".join(str(setting[name]) for name in ("first", "people", "images")))
    images = setting["images"]
    if images % 4:
        raise SystemExit(f"--images {images}: four visible cameras share them; give a multiple of 4")
    if not (folder / "images").exists():
        drawn = PeopleSet(setting["first"], setting["people"], visible=images // 4, infrared=images // 2)
        with atomic_folder(folder / "images") as drop:
            for image in images_of(drawn):
                (drop / image.path).parent.mkdir(parents=True, exist_ok=True)
                (drop / image.path).write_bytes(png(image))
            (drop / MARKER).touch()
    if not (folder / "ingest.json").exists():
        params = parameters(setting, 0)
        drop, _ = open_drop(str(folder / "images"), "cameras")
        places = {"root": folder / "data", "metrics": folder / "ingest.json", "state": folder / ".state"}
        ingest(
            [drop], params.data, params.ingest, params.embedding.identities_per_batch, processes=1, **places
        )
    return folder


def parameters(setting: Mapping[str, Any], seed: int) -> Params:
    """params.yaml with the setting and the seed, on one thread."""
    raw = read_yaml(ROOT / "params.yaml")
    raw["seed"] = seed
    raw["data"]["aliases"] = str(ROOT / raw["data"]["aliases"])
    raw["model"]["weights"] = str(ROOT / raw["model"]["weights"])
    raw["embedding"]["epochs"] = setting["epochs"]
    for name in ("hse_visible", "hse_infrared"):
        raw["embedding"]["losses"][name] *= setting["strength"]
    raw["ingest"]["store"] = None  # shards lie under --out
    raw["scaling"] |= {"workers": 0, "threads": 1, "loader_workers": 0, "device": "cpu"}
    return parse_params(raw)


def run(people: Path, setting: Mapping[str, Any], seed: int, name: str) -> dict[str, float]:
    """Stage 2 of one seed with one table, and its figures on the people who were not trained on."""
    params = parameters(setting | ({"strength": 0.0} if name in WITHOUT_HSE else {}), seed)
    configure_torch(params.scaling.threads, params.scaling.device)
    data, stage1 = people / "data", people / f"prompts-{seed}"
    if not stage1.exists():
        run_prompts(params, data, stage1, people / f"prompts-{seed}.json", silent)
    inputs = training_inputs(params, data, "embedding", stage1 / "prompts.safetensors")
    given = prepared(name, inputs, load_prompts(inputs.model, stage1 / "prompts.safetensors"), params, data)
    feed = TrainLoader(TrainSource(params, inputs.table, shards_at(params, data)), params.scaling.loader_workers)
    inputs.model.channels_last()
    with unsaved() as state:
        rows = train_embedding(
            inputs.model, given, feed, params.embedding, state, quiet, training=params.training
        )
    inputs.model.eval()
    return losses(rows) | tested(inputs, params, data)


def prepared(name: str, inputs: TrainingInputs, text: Tensor, params: Params, data: Path) -> Tensor:
    """What HSE is given for `name`; without a weight it does not matter. "classifier" changes the network."""
    if name == "permuted":
        return text[derangement(len(text), params.seed)]
    if name == "gaussian":
        return gaussian(text, params.seed)
    if name == "rotated":
        return rotated(text, params.seed)
    if name not in ("prototypes", "classifier"):
        return text
    images = torch.from_numpy(embedded(*image_batches(inputs, params, data), params)["embeddings"])
    means = prototypes(images, torch.from_numpy(inputs.table.label), text)
    if name == "classifier":
        with torch.no_grad():  # behind the batch norm: its logits are those of HSE, but for a constant
            inputs.model.pool_neck.classifier.weight.copy_(means * images.std(0))
    return means


def losses(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the first epoch, and of id_pool over the last."""
    first, last = ([row for row in rows if row["epoch"] == rows[n]["epoch"]] for n in (0, -1))
    found = {name: statistics.fmean(row[name] for row in first) for name in ("id_gem", "id_pool")}
    found["hse"] = statistics.fmean((row["hse_visible"] + row["hse_infrared"]) / 2 for row in first)
    return found | {"id_pool_last": statistics.fmean(row["id_pool"] for row in last)}


def tested(inputs: TrainingInputs, params: Params, data: Path) -> dict[str, float]:
    """Figures in percent on the people who were not trained on; mAP also of each branch alone."""
    evaluation = params.evaluation
    experiment = prepare(load_dataset(data), evaluation.protocol, **evaluation.options())
    clip = load_clip(params.model.clip, params.model.weights)
    embeds = partial(embedders, params, clip, fuse_batch_norms(inputs.model))
    found = embedded(test_batches(experiment.table, params, data), embeds, params)
    figures = {f"{name}.{metric}": of for name, metric, of in searched(experiment, found["trained"], METRICS)}
    f, g = branches(found["trained"], inputs.model.config.map_channels)
    for name, features in (("f", f), ("g", g)):
        figures[f"{name}.mAP"] = statistics.fmean(of for *_, of in searched(experiment, features, ("mAP",)))
    return figures | cosines(g, found["clip"], experiment.table.label, experiment.table.modality)


def embedded(walk: ImageBatches, make_embeds: MakeEmbeds, params: Params) -> dict[str, np.ndarray]:
    """Features [n, D] of each embed."""
    with unsaved() as state:
        batches = partial(extract_local, walk, make_embeds, params, CPU)
        return extract_features(batches, len(walk.table), state, quiet)


def branches(features: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """f [n, 2c] and g [n, 2d] of an image and its mirror image, out of their features [n, 2(c + d)]."""
    image, mirror = np.split(features, 2, axis=1)
    return (
        np.concatenate([image[:, :channels], mirror[:, :channels]], axis=1),
        np.concatenate([image[:, channels:], mirror[:, channels:]], axis=1),
    )


def searched(
    experiment: Experiment, features: np.ndarray, metrics: tuple[str, ...]
) -> Iterator[tuple[str, str, float]]:
    """(direction, metric, percent) of features [images, D] of the experiment's images."""
    for search in experiment.searches:
        found = trial_statistics(trial_metrics(search, experiment.labels, FeatureDistances(features)))
        for metric in metrics:
            yield DIRECTIONS[search.name], metric, found[metric]["mean"]


def cosines(g: np.ndarray, clip: np.ndarray, people: np.ndarray, modality: np.ndarray) -> dict[str, float]:
    """How the similarities g . g of visible with infrared images tell people, and what is left of CLIP's.

    g, clip: [n, d] of the trained network and of CLIP, of the same images. separation: mean similarity of one
    person's images less that of two people's, in standard deviations of the latter. kept: correlation of the
    similarities of two people's images, trained with CLIP's.
    """
    visible, infrared = modality == 0, modality == 1
    trained, before = (features[visible] @ features[infrared].T for features in (g, clip))
    same = people[visible][:, None] == people[infrared]
    others = trained[~same]
    return {
        "separation": float((trained[same].mean() - others.mean()) / others.std()),
        "kept": float(np.corrcoef(others, before[~same])[0, 1]),
    }


@contextmanager
def unsaved() -> Iterator[LocalState]:
    """State of a run that is not continued: a killed one starts again."""
    with tempfile.TemporaryDirectory() as folder:
        with LocalState(CheckpointStore(Path(folder))) as state:
            yield state


@contextmanager
def silent(*_: Any, **__: Any) -> Iterator[Callable[..., None]]:
    """Progress that nobody watches."""
    yield quiet


def quiet(*_: Any) -> None:
    pass
