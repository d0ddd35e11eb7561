"""Warm start compared with training from CLIP, on the synthetic cameras: the tables of research/warm-start.md.

    python research/warm.py --seeds 0 1 2 --out runs/warm

The champion is trained on builtin:demo; then builtin:later arrives. All ways of training use the same data and
champion, and the same test people. Seconds are processor seconds of one thread, so that other load does not
count. Results in --out are reused.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from text_run import METRICS, embedded, searched, silent

from csdn.data.catalog import load_dataset
from csdn.evaluation.run import embedders, prepare, test_batches
from csdn.ingest.run import ingest
from csdn.ingest.sync import open_drop
from csdn.model import fuse_batch_norms, load, load_clip
from csdn.model.weights import read_safetensors
from csdn.params import Params, parse_params
from csdn.runtime.documents import read_yaml
from csdn.runtime.files import write_json
from csdn.training.champion import Start
from csdn.training.embedding import run_embedding, train_local
from csdn.training.warm_start import training_inputs
from csdn.training.prompts import image_batches, run_prompts
from csdn.training.warm_start import WarmStart

ROOT = Path(__file__).parents[1]
DROPS = {"champion": ["builtin:demo"], "today": ["builtin:demo", "builtin:later"]}
COLUMNS = (
    *("stage 1", "stage 2", "ir_to_vis rank1", "ir_to_vis mAP", "vis_to_ir rank1", "vis_to_ir mAP"),
    *("named, known", "named, new"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, nargs="+", help="of stage 2; default: warm_start.epochs")
    parser.add_argument("--prompts", nargs="+", default=["new", "all"], choices=["new", "all"])
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0], help="factors of the learning rates of warm_start")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.chdir(options.out)
    epochs = options.epochs or [parameters(0).warm_start.epochs]
    ways = [
        {"prompts": p, "epochs": e, "rate": r} for p in options.prompts for e in epochs for r in options.rates
    ]
    for name in DROPS:
        ingested(name)
    table: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        table.setdefault("the champion", []).append(result(seed, "champion", None))
        table.setdefault("from CLIP", []).append(result(seed, "today", None))
        for way in ways:
            label = f"warm, prompts: {way['prompts']}, {way['epochs']} epochs"
            label += f", rates x {way['rate']:g}" if way["rate"] != 1 else ""
            table.setdefault(label, []).append(result(seed, "today", way))
    show(table)


def parameters(seed: int, way: dict[str, Any] | None = None) -> Params:
    """params.yaml with the seed, on one thread, and the settings of the warm start."""
    raw = read_yaml(ROOT / "params.yaml")
    raw["seed"] = seed
    raw["data"]["aliases"] = str(ROOT / raw["data"]["aliases"])
    raw["model"]["weights"] = str(ROOT / raw["model"]["weights"])
    raw["scaling"] |= {"workers": 0, "threads": 1, "loader_workers": 0, "device": "cpu"}
    if way:
        raw["warm_start"] |= {"prompts": way["prompts"], "epochs": way["epochs"]}
        for rate in ("learning_rate", "head_learning_rate"):
            raw["warm_start"][rate] *= way["rate"]
    return parse_params(raw)


def ingested(name: str) -> None:
    """Ingest the drops of `name` into a separate folder, once."""
    if not Path(f"{name}.json").exists():
        params = parameters(0)
        drops = [open_drop(address, "builtin")[0] for address in DROPS[name]]
        places = {"root": Path(name), "metrics": Path(f"{name}.json"), "state": Path(".state")}
        ingest(
            drops, params.data, params.ingest, params.embedding.identities_per_batch, processes=1, **places
        )


def result(seed: int, data: str, way: dict[str, Any] | None) -> dict[str, Any]:
    """Seconds and metrics of one training; read from --out if it was done before."""
    name = "-".join(map(str, (seed, data, *(way or {}).values())))
    path = Path("results") / f"{name}.json"
    if not path.exists():
        write_json(path, train(seed, data, way, Path(name)))
    return json.loads(path.read_text(encoding="utf-8"))


def train(seed: int, data: str, way: dict[str, Any] | None, folder: Path) -> dict[str, Any]:
    """Train both stages into `folder`; the metrics are always on the test people of today."""
    params = parameters(seed, way)
    warm = champion(f"{seed}-champion") if way else None
    prompts, model = folder / "prompts", folder / "embedding"
    with seconds() as stage1:
        run_prompts(params, Path(data), prompts, folder / "prompts.json", silent, warm=warm)
    with seconds() as stage2:
        arguments = (prompts, model, folder / "embedding.json", train_local, silent)
        run_embedding(params, Path(data), *arguments, warm=warm)
    trained = tested(params, model)
    texts = {} if data == "champion" else naming(params, prompts)
    return {"stage 1": stage1[0], "stage 2": stage2[0], **trained, **texts}


def tested(params: Params, model: Path) -> dict[str, float]:
    """Metrics in percent on the test people of today."""
    evaluation = params.evaluation
    experiment = prepare(load_dataset("today"), evaluation.protocol, **evaluation.options())
    clip = load_clip(params.model.clip, params.model.weights)
    embeds = partial(embedders, params, clip, fuse_batch_norms(load(model)))
    found = embedded(test_batches(experiment.table, params, Path("today")), embeds, params)
    return {f"{way} {metric}": of for way, metric, of in searched(experiment, found["trained"], METRICS)}


@contextlib.contextmanager
def seconds() -> Iterator[list[float]]:
    """Yields a list that receives the processor seconds of the block."""
    taken: list[float] = []
    start = time.process_time()
    yield taken
    taken.append(time.process_time() - start)


def champion(folder: str) -> WarmStart:
    """The champion in `folder`, as the start of training."""
    hashes = {
        stage: hashlib.sha256(Path(folder, stage, file).read_bytes()).hexdigest()
        for stage, file in (("prompts", "prompts.safetensors"), ("embedding", "model.safetensors"))
    }
    return WarmStart(Start(version="v1", **hashes), Path(folder))


def naming(params: Params, prompts: Path) -> dict[str, float]:
    """Percentage of images whose nearest fused text is that of their person: known and new people."""
    inputs = training_inputs(params, Path("today"), "prompts")
    images = embeddings(params, inputs)
    text = read_safetensors(prompts / "prompts.safetensors")["fused_text"].numpy()
    right = (images @ text.T).argmax(axis=1) == inputs.table.label
    known = load_dataset("champion").people["person"].to_pylist()
    new = np.array([person not in known for person in inputs.people])[inputs.table.label]
    return {"named, known": 100 * right[~new].mean(), "named, new": 100 * right[new].mean()}


def embeddings(params: Params, inputs: Any) -> np.ndarray:
    """Embeddings of all training images of today by the frozen encoder; independent of the seed."""
    path = Path("embeddings.npy")
    if not path.exists():
        with torch.inference_mode():
            found = embedded(*image_batches(inputs, params, Path("today")), params)
        np.save(path, found["embeddings"])
    return np.load(path)


def show(table: dict[str, list[dict[str, Any]]]) -> None:
    """Print mean and standard deviation over the seeds, one line per way of training."""
    print("| | " + " | ".join(COLUMNS) + " |\n|---" + "|---" * len(COLUMNS) + "|")
    for label, runs in table.items():
        cells = [cell([run[column] for run in runs]) if column in runs[0] else "" for column in COLUMNS]
        print(f"| {label} | " + " | ".join(cells) + " |")


def cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
