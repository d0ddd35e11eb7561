"""What the network refuses, before torch does in terms of its own, or computes something else."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from csdn.model.config import MODALITIES, ModelConfig


def check_modality(modality: str) -> None:
    if modality not in MODALITIES:
        raise ValueError(f"modality {modality!r}; allowed: {', '.join(MODALITIES)}")


def check_images(images: Mapping[str, Tensor], config: ModelConfig, dtype: torch.dtype) -> None:
    """Raise ValueError unless the images of each modality are floats [n, 3, H, W] of the network's size."""
    if not images:
        raise ValueError("no images: give those of one modality or of both")
    height, width = config.image_size
    needed = f"normalised {_name(dtype)} [images, 3, {height}, {width}] is needed"
    for modality, batch in images.items():
        check_modality(modality)
        if not isinstance(batch, Tensor):
            raise ValueError(f"{modality} images are a {type(batch).__name__}; a tensor is needed: {needed}")
        if batch.ndim != 4 or batch.shape[1:] != (3, height, width) or not _fits(batch, dtype):
            raise ValueError(f"{modality} images are {_name(batch.dtype)} {list(batch.shape)}; {needed}")


def _fits(batch: Tensor, dtype: torch.dtype) -> bool:
    if torch.is_autocast_enabled(batch.device.type):  # it converts floats itself
        return batch.is_floating_point()
    return batch.dtype == dtype


def check_people(people: Tensor, identities: int) -> None:
    """Raise ValueError unless people are rows of the network's people.

    Their values are looked at on the CPU alone: a GPU would have to be waited for.
    """
    if not isinstance(people, Tensor) or people.ndim != 1 or people.is_floating_point():
        raise ValueError("people: integers [n] in a tensor are needed, rows of the network's people")
    if people.device.type == "cpu" and len(people):
        lowest, highest = int(people.min()), int(people.max())
        if lowest < 0 or highest >= identities:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"person {wrong}: this network has the people 0 to {identities - 1}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
