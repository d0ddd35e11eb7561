"""A small network with random weights, saved as a model folder, for tests of csdn.search."""

from __future__ import annotations

from pathlib import Path

import torch

from csdn.model import CSDN, ModelConfig, save


def save_small_model(folder: Path, seed: int = 0) -> Path:
    """A network of 64 x 32 pixels with 80 numbers a feature (160 with flip TTA); returns its folder."""
    sizes = {"depths": (1, 1, 1, 1), "width": 2, "pool_heads": 4, "embed_dim": 16}
    text = {"text_width": 16, "text_heads": 2, "text_layers": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CSDN(ModelConfig(identities=3, image_size=(64, 32), **sizes, **text))
    save(network.eval(), folder, normalize="imagenet")
    return folder
