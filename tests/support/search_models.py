"""A small network with random weights, saved as a model folder, for tests of csdn.search."""

from __future__ import annotations

import datetime
from pathlib import Path

import torch

from csdn.model import CSDN, ModelConfig, save
from csdn.training.champion import Champion, ChampionFile, write_champion


def save_small_model(folder: Path, seed: int = 0) -> Path:
    """A network of 64 x 32 pixels with 80 numbers a feature (160 with flip TTA); returns its folder."""
    sizes = {"depths": (1, 1, 1, 1), "width": 2, "pool_heads": 4, "embed_dim": 16}
    text = {"text_width": 16, "text_heads": 2, "text_layers": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CSDN(ModelConfig(identities=3, image_size=(64, 32), **sizes, **text))
    save(network.eval(), folder, normalize="imagenet")
    return folder


def name_champion(root: Path, version: str, embedding: str) -> None:
    """champion.json names a version, by the SHA-256 of its weights."""
    about = {"run": "20261121-0a1b2c3d", "people": 3, "images": 9, "figures": {}}
    day = datetime.date(2026, 11, 21)
    champion = Champion(version=version, prompts="0" * 64, embedding=embedding, date=day, **about)
    write_champion(ChampionFile(champion=champion, start=None), root)
