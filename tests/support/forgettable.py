"""A project with two versions of a model, from which people can be forgotten: real ingest, Git and DVC, and
models and evaluations that nobody trained.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from make_images import make_drop
from repository import git, make_repository
from safetensors.torch import save_file
from workspace import run

from csdn.data.catalog import load_dataset
from csdn.ingest.forgotten import Forgotten, forgotten_text
from csdn.ingest.ledger import read_ledger, write_ledger
from csdn.ingest.sync import open_drop
from csdn.model import CSDN, ModelConfig, save
from csdn.runtime.files import file_sha256, write_json
from csdn.search.gallery import ROWS, Gallery

PEOPLE = {"monday": [f"person {n:02d}" for n in range(12)], "tuesday": [f"late {n:02d}" for n in range(4)]}
SMALL = {"depths": (1, 1, 1, 1), "width": 2, "pool_heads": 4, "embed_dim": 16}
TEXT = {"text_width": 16, "text_heads": 2, "text_layers": 1}


def make_world(base: Path, remote: str = "", **params: object) -> Path:
    """A clone in base/project with versions v1 and v2; its Git and DVC remotes, and two drops in base/in."""
    project = make_repository(base / "project", **{"ingest.shard_megabytes": 1, **params})
    write_ledger([], project / "data/drops.json")
    (project / "data/forgotten.json").write_bytes(forgotten_text(Forgotten(salt="salt")))  # the same names
    run(project, "dvc", "remote", "add", "--default", "store", remote or str(base / "remote"))
    for number, (name, people) in enumerate(PEOPLE.items(), start=1):
        make_drop(base / "in" / name, people)
        make_version(project, base / "in" / name, number)
    git(base, "init", "--quiet", "--bare", "--initial-branch", "main", "origin.git")
    git(project, "remote", "add", "origin", str(base / "origin.git"))
    git(project, "push", "--quiet", "--tags", "origin", "main")
    return project


def make_version(project: Path, drop: Path, number: int) -> None:
    """Ingest a drop, and commit a model of all people so far as a version that starts from the one before."""
    ledger = [*read_ledger(project / "data/drops.json"), open_drop(str(drop), "cameras")[0]]
    write_ledger(ledger, project / "data/drops.json")
    run(project, "dvc", "repro", "ingest")
    write_outputs(project, number)
    run(project, "dvc", "commit", "--force", "prompts", "embedding", "evaluate", "report")
    run(project, "dvc", "push")
    file = json.loads((project / "champion.json").read_text())
    weights = {
        "prompts": file_sha256(project / "models/prompts/prompts.safetensors"),
        "embedding": file_sha256(project / "models/embedding/model.safetensors"),
    }
    before = file["champion"] and {name: file["champion"][name] for name in ("version", *weights)}
    about = {"run": f"20260101-{number:08x}", "people": 8, "images": 96, "date": "2026-01-01", "figures": {}}
    champion = {"version": f"v{number}", **weights, **about}
    write_json(project / "champion.json", {"champion": champion, "start": before})
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", f"champion v{number}")
    git(project, "tag", "--annotate", "--message", "version", f"csdn@v{number}.0.0")


def write_outputs(project: Path, seed: int) -> None:
    """Models, evaluation and report of the project's people, as the stages lay them out."""
    dataset = load_dataset(project / "data")
    table, index = dataset.train_table(), dataset.test_index()
    people = dataset.people["person"].take(np.unique(table.person_row)).to_pylist()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CSDN(ModelConfig(identities=len(people), image_size=(64, 32), **SMALL, **TEXT))
        for name, tensor in network.state_dict().items():
            if "classifier" in name:
                tensor.normal_()
        shutil.rmtree(project / "models", ignore_errors=True)
        save(network.eval(), project / "models/embedding", normalize="imagenet", people=people)
        (project / "models/prompts").mkdir(parents=True)
        tokens = {name: value for name, value in network.state_dict().items() if name.startswith("prompts.")}
        tokens["fused_text"] = torch.randn(len(people), 16)
        save_file(tokens, project / "models/prompts/prompts.safetensors")
    write_json(project / "models/prompts/config.json", {"people": people})
    folder = project / "evaluation"
    folder.mkdir(exist_ok=True)
    model = file_sha256(project / "models/embedding/model.safetensors")
    write_json(folder / "thresholds.json", {"format": 1, "model": model, "flip_tta": True, "directions": {}})
    pq.write_table(pa.table({"person": index["person"], "key": index["key"]}), folder / "queries.parquet")
    save_file({"trained": torch.randn(len(index["key"]), 4)}, folder / "features.safetensors")
    (folder / "cmc.csv").write_text("rank,score\n1,50\n")
    (project / "report").mkdir(exist_ok=True)
    (project / "report/index.html").write_text("".join(f"<bdi>{person}</bdi>" for person in index["person"]))
    for stage in ("prompts", "embedding", "evaluation", "headline"):
        write_json(project / f"metrics/{stage}.json", {"seed": seed})


def people_by(split: str, project: Path) -> list[str]:
    """The training or the test people in use, in the order of their rows."""
    people = load_dataset(project / "data").people
    return people["person"].filter(pc.equal(people["status"], split)).to_pylist()


def make_gallery(address: str, project: Path) -> Gallery:
    """A gallery of all images of the data, with random features, as if the champion had made them."""
    dataset = load_dataset(project / "data")
    model = file_sha256(project / "models/embedding/model.safetensors")
    gallery = Gallery.create(address, model, 4, "float32", flip_tta=True)
    samples = dataset.samples.to_table()
    names = dataset.people["person"].to_pylist()
    columns = {
        "source": [f"/in/{path}" for path in samples["path"].to_pylist()],
        "person": [names[row] for row in samples["person_row"].to_pylist()],
        "camera": samples["camera"].to_pylist(),
        "modality": samples["modality"].to_pylist(),
        "time": [None] * len(samples),
        "size": samples["size"].to_pylist(),
        "sha256": [bytes.fromhex(key) for key in samples["key"].to_pylist()],
    }
    schema = pa.schema([field for field in ROWS if field.name != "id"])
    features = np.random.default_rng(0).standard_normal((len(samples), 4)).astype(np.float32)
    gallery.add(features, pa.table(columns, schema))
    return gallery
