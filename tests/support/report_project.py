"""A project as the stages leave it, for the report alone: people's features are drawn, no network is run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from make_images import Project, jpeg, write

from csdn.data.catalog import load_dataset
from csdn.evaluation.distances import FeatureDistances
from csdn.evaluation.headline import RERANKED
from csdn.evaluation.rerank import RerankedDistances
from csdn.evaluation.run import PeopleMaps, evaluate, prepare, write_results
from csdn.evaluation.text_maps import TextMaps, examples
from csdn.params import load_params

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
HOSTILE = "<script>alert(1)</script>"
STAMP = ("0" * 64, False)  # of the drawn features: no model made them
TERMS = "total,id_gem,id_pool,triplet_gem,triplet_pool,msel_gem,msel_pool,hse_visible,hse_infrared"
CAMERAS = {modality: (f"<b>{modality}</b>",) for modality in ("visible", "infrared")}


def make_project(
    root: Path,
    people: Iterable[str] = tuple(f"{HOSTILE} {number}" for number in range(10)),
    cameras: dict[str, Sequence[str]] = CAMERAS,
    test_percent: int = 50,
    size: tuple[int, int] = (16, 8),
    shots: int = 2,
) -> Path:
    """Images of each person by each camera, one file that is refused, and what all stages would write."""
    project = Project(root)
    rows = ["path,person,modality,camera"]
    for number, person in enumerate(people):
        for modality, names in cameras.items():
            for camera, name in enumerate(names):
                for shot in range(shots):
                    path = f"{modality}-{number}-{camera}-{shot}.jpg"
                    write(root / "drop" / path, jpeg(path, *size))
                    rows.append(f'{path},"{person}",{modality},"{name}"')
    write(root / "drop" / "<img src=x onerror=alert(2)>.jpg", b"")
    # Of a camera with other images: a camera of which every image is bad holds the drop.
    rows.append(f'<img src=x onerror=alert(2)>.jpg,"{HOSTILE}",visible,"{cameras["visible"][0]}"')
    write(root / "drop" / "manifest.csv", "\n".join(rows).encode())
    project.add(root / "drop")
    project.ingest(test_percent=test_percent, max_bad_fraction=0.5)
    write_evaluation(root)
    write_training(root)
    return root


def write_evaluation(root: Path, rerank: bool = False) -> None:
    dataset = load_dataset(root / "data")
    experiment = prepare(dataset, "cameras", trials=2)
    draws = np.random.default_rng(0)
    features = {
        name: draws.standard_normal((len(experiment.table), 8)).astype(np.float32)
        for name in ("trained", "clip", "hog")
    }
    methods = {name: FeatureDistances(found) for name, found in features.items()}
    if rerank:
        methods[RERANKED] = RerankedDistances(features["trained"])
    results = evaluate(experiment, methods, seed=0)
    write_results(results, features, drawn_maps(dataset), STAMP, root / "evaluation")
    write(root / "metrics" / "evaluation.json", json.dumps(results.figures).encode())


def drawn_maps(dataset) -> PeopleMaps:
    """Maps of random values for the images that the stage would choose."""
    table = dataset.train_table()
    rows = examples(table.label, table.modality)
    names = dict(zip(dataset.people["row"].to_pylist(), dataset.people["person"].to_pylist(), strict=True))
    images = [
        {
            "key": table.key(row),
            "person": names[table.person_row[row]],
            "modality": ("visible", "infrared")[table.modality[row]],
        }
        for row in rows
    ]
    values = torch.rand(3, len(rows), 4, 2, generator=torch.Generator().manual_seed(0))
    return PeopleMaps(images, TextMaps(*values))


def write_training(root: Path) -> None:
    modalities = ("visible", "infrared")
    texts = {f"{text}_names_{m}": 50.0 for text in (*modalities, "fused") for m in modalities}
    write(root / "metrics" / "prompts.json", json.dumps(texts).encode())
    log = f"epoch,step,{TERMS}\n0,1{',2' * 9}\n0,2{',1' * 9}\n"
    write(root / "models/embedding/log.csv", log.encode())
    config = {"model": {"clip": "RN50", "clip_sha256": "ab", "image_size": [16, 8]}}
    write(root / "models/embedding/config.json", json.dumps(config).encode())
    log = "phase,epoch,step,loss\nprompts,0,1,9\nprompts,0,2,8\nintegration,0,1,5\n"
    write(root / "models/prompts/log.csv", log.encode())


class Elements(HTMLParser):
    """Every start tag of a page with its attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data
