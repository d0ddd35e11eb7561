"""One run for benchmarks/text.py: the people, stage 1 of a seed, stage 2 with one table, its figures."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from text_tables import derangement, gaussian, prototypes
from torch import Tensor

from csdn.builtin.drops import MARKER, PeopleSet, images_of, png
from csdn.data.arrivals import examine
from csdn.data.dataset import load_dataset
from csdn.data.ingest import ingest
from csdn.device import configure_torch
from csdn.evaluation.features import mirrored
from csdn.evaluation.job import image_batches, prepare
from csdn.evaluation.results import Experiment
from csdn.evaluation.scores import feature_distances, headline, trial_metrics
from csdn.files import replace_folder
from csdn.model import folded
from csdn.params import Params, parse_params
from csdn.state import StageState
from csdn.training.embedding_job import embedding_settings, load_prompts, local_feed
from csdn.training.embedding_stage import train_embedding
from csdn.training.inputs import TrainingInputs, training_inputs
from csdn.training.prompt_job import embed_once, run_prompts
from csdn.walk import embed_all

ROOT = Path(__file__).parents[1]
TABLES = ("none", "text", "permuted", "gaussian", "prototypes")
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
        with replace_folder(folder / "images") as drop:
            for image in images_of(drawn):
                (drop / image.path).parent.mkdir(parents=True, exist_ok=True)
                (drop / image.path).write_bytes(png(image))
            (drop / MARKER).touch()
    if not (folder / "ingest.json").exists():
        params = parameters(setting, 0)
        drop, _ = examine(str(folder / "images"), "cameras")
        places = {"root": folder / "data", "metrics": folder / "ingest.json", "state": folder / ".state"}
        ingest([drop], params.data, params.ingest, params.embedding.people, processes=1, **places)
    return folder


def parameters(setting: Mapping[str, Any], seed: int) -> Params:
    """params.yaml with the setting and the seed, on one thread."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["seed"] = seed
    raw["data"]["aliases"] = str(ROOT / raw["data"]["aliases"])
    raw["model"]["weights"] = str(ROOT / raw["model"]["weights"])
    raw["embedding"]["epochs"] = setting["epochs"]
    for name in ("hse_visible", "hse_infrared"):
        raw["embedding"]["losses"][name] *= setting["strength"]
    raw["scaling"] |= {"workers": 0, "threads": 1, "feed_processes": 0, "device": "cpu"}
    return parse_params(raw)


def run(people: Path, setting: Mapping[str, Any], seed: int, name: str) -> dict[str, float]:
    """Stage 2 of one seed with one table, and its figures on the people who were not trained on."""
    params = parameters(setting | ({"strength": 0.0} if name == "none" else {}), seed)
    configure_torch(params.scaling.threads, params.scaling.device)
    stage1 = people / f"prompts-{seed}"
    if not stage1.exists():
        run_prompts(params, people / "data", stage1, people / f"prompts-{seed}.json", silent)
    inputs = training_inputs(params, people / "data", "embedding", stage1 / "prompts.safetensors")
    text = load_prompts(inputs.model, stage1 / "prompts.safetensors")
    given = text_table(name, text, inputs, params, people / "data")
    feed = local_feed(params, inputs.table, people / "data")
    settings = embedding_settings(params.embedding)
    inputs.model.channels_last()
    with unsaved() as state:
        rows = train_embedding(inputs.model, given, feed, settings, state, quiet)
    inputs.model.eval()
    early = [row for row in rows if row["epoch"] == 0]
    losses = {loss: statistics.fmean(row[loss] for row in early) for loss in ("id_pool", "id_gem")}
    return losses | tested(inputs, params, people / "data")


def text_table(name: str, text: Tensor, inputs: TrainingInputs, params: Params, data: Path) -> Tensor:
    """What HSE is given for `name`; without a weight ("none") it does not matter."""
    if name == "permuted":
        return text[derangement(len(text), params.seed)]
    if name == "gaussian":
        return gaussian(text, params.seed)
    if name == "prototypes":
        with unsaved() as state:
            images = embed_once(inputs, params, data, CPU, state, quiet)
        return prototypes(images, torch.from_numpy(inputs.table.label), text)
    return text


def tested(inputs: TrainingInputs, params: Params, data: Path) -> dict[str, float]:
    """Figures in percent on the people who were not trained on; mAP also of each branch alone."""
    evaluation = params.evaluation
    experiment = prepare(load_dataset(data), evaluation.protocol, **evaluation.options())
    embeds = {"both": mirrored(folded(inputs.model).embed)}
    with unsaved() as state:
        walk = image_batches(experiment.table, params, data, quiet)
        both = embed_all(walk, embeds, len(experiment.table), CPU, state)["both"]
    c = inputs.model.config.map_channels
    branches = both.reshape(len(both), 2, -1)  # image and mirror image
    f, g = branches[:, :, :c].reshape(len(both), -1), branches[:, :, c:].reshape(len(both), -1)
    figures = {f"{name}.{metric}": value for name, metric, value in searched(experiment, both, METRICS)}
    for branch, features in (("f", f), ("g", g)):
        found = [value for *_, value in searched(experiment, features, ("mAP",))]
        figures[f"{branch}.mAP"] = statistics.fmean(found)
    return figures | cosines(branches[:, 0, c:], experiment.table.label, experiment.table.modality)


def searched(
    experiment: Experiment, features: np.ndarray, metrics: tuple[str, ...]
) -> Iterator[tuple[str, str, float]]:
    """(direction, metric, percent) of features [images, D] of the experiment's images."""
    for search in experiment.searches:
        found = headline(trial_metrics(search, experiment.labels, feature_distances(features)))
        for metric in metrics:
            yield DIRECTIONS[search.name], metric, found[metric]["mean"]


def cosines(g: np.ndarray, people: np.ndarray, modality: np.ndarray) -> dict[str, float]:
    """Mean cosine of a visible and an infrared image of one person, and how it stands out.

    g: [n, d], normalised. separation: the mean's distance from that of two people, in standard deviations of
    the latter.
    """
    visible, infrared = modality == 0, modality == 1
    cosine = g[visible] @ g[infrared].T
    same = people[visible][:, None] == people[infrared]
    own, others = cosine[same], cosine[~same]
    return {"same": float(own.mean()), "separation": float((own.mean() - others.mean()) / others.std())}


@contextmanager
def unsaved() -> Iterator[StageState]:
    """State of a run that is not continued: a killed one starts again."""
    with tempfile.TemporaryDirectory() as folder:
        yield StageState(Path(folder))


@contextmanager
def silent(*_: Any, **__: Any) -> Iterator[Callable[..., None]]:
    """Progress that nobody watches."""
    yield quiet


def quiet(*_: Any) -> None:
    pass
