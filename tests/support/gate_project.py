"""A finished project with a champion, as `csdn gate` finds it; its networks are small and not trained."""

from __future__ import annotations

import datetime
import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from make_images import Project, make_drop, people_named
from small_network import SMALL

from csdn.data.catalog import load_dataset
from csdn.model import CSDN, save
from csdn.params import Params, load_params
from csdn.training.champion import Champion, ChampionFile, write_champion

ROOT = Path(__file__).parents[2]


class GateProject:
    """Some of the people are test people; candidate and champion are networks drawn from two seeds."""

    def __init__(self, root: Path) -> None:
        self.root, self.ingested, self.test_percent = root, Project(root), 60

    def make(self, people: int = 20) -> GateProject:
        """A candidate, and no champion."""
        self.ingested.add(make_drop(self.root / "drop", people_named(people)))
        self.ingest()
        self.candidate(seed=1)
        write_champion(ChampionFile(champion=None, start=None), self.root)
        return self

    def copy(self, root: Path) -> GateProject:
        shutil.copytree(self.root, root)
        return GateProject(root)

    def ingest(self, test_percent: int = 60, **settings) -> None:
        self.test_percent = test_percent
        self.ingested.ingest(test_percent=test_percent, **settings)

    def candidate(self, seed: int, **config) -> None:
        self.save(self.root / "models/embedding", seed, **config)

    def champion(self, seed: int, **config) -> None:
        """A champion that was chosen on the data as they are now."""
        self.save(self.root / "champion/embedding", seed, **config)
        name_champion(self.root, self.root / "data")

    def params(self, protocol: str = "cameras", **gate) -> Params:
        params = load_params(ROOT / "params.yaml")
        sections = {
            "data": {"aliases": "no-aliases.json", "test_percent": self.test_percent},
            "model": {"weights": str(ROOT / params.model.weights)},
            "evaluation": {"trials": 3, "protocol": protocol},
            "gate": {"min_people": 2, "bootstrap_samples": 200, "memory": 0} | gate,
            "scaling": {"threads": 1, "loader_workers": 0},
        }
        return params.model_copy(
            update={name: getattr(params, name).model_copy(update=new) for name, new in sections.items()}
        )

    def save(self, folder: Path, seed: int, **config) -> None:
        torch.manual_seed(seed)
        table = load_dataset(self.root / "data")
        people = [one["person"] for one in table.people.to_pylist() if one["status"] == "train"]
        extra = {"people": people, "normalize": "imagenet"} | {
            name: config.pop(name) for name in ("people", "normalize") if name in config
        }
        save(CSDN(replace(SMALL, **config)).eval(), folder, **extra)


def name_champion(root: Path, data: Path) -> None:
    """Make the model in champion/embedding of a project its champion, chosen on the tables in `data`."""
    (root / "champion/data").mkdir(exist_ok=True)
    for name in ("samples.parquet", "people.parquet"):
        shutil.copy(data / name, root / "champion/data")
    weights = (root / "champion/embedding/model.safetensors").read_bytes()
    champion = Champion(
        version="v3",
        run="20261121-0123abcd",
        prompts="0" * 64,
        embedding=hashlib.sha256(weights).hexdigest(),
        people=1,
        images=1,
        date=datetime.date(2026, 11, 21),
        figures={},
    )
    write_champion(ChampionFile(champion=champion, start=None), root)
