"""Test features: each test image is embedded once, whatever the number of trials."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from csdn.model import CSDN

# Images [B, 3, H, W] of one modality -> features [B, D].
Embed = Callable[[Tensor, str], Tensor]


def embed_with_mirror(model: CSDN, images: Tensor, modality: str) -> Tensor:
    """Retrieval feature [B, 2D]: the test feature of each image and of its mirror image, side by side.

    images: normalised floats [B, 3, H, W] of one modality, "visible" or "infrared"; model in evaluation
    mode. Two images are compared by the dot product of their features. D is 3072 at RN50.
    """
    return with_mirror(model.embed, images, modality)


def with_mirror(embed: Embed, images: Tensor, modality: str) -> Tensor:
    """`embed` of the images and of their mirror images [B, 2D], in one pass of twice the batch."""
    features = embed(torch.cat([images, images.flip(-1)]), modality)
    return torch.cat(features.chunk(2), dim=1)


def clip_embed(model: CSDN) -> Embed:
    """A CLIP that was not trained: its attention pool's raw output g, l2-normalised."""

    def embed(images: Tensor, modality: str) -> Tensor:
        return F.normalize(model.image_embeddings(images, modality))

    return embed


def mirrored(embed: Embed) -> Embed:
    return partial(with_mirror, embed)


def embed_all(
    batches: Iterable[tuple[np.ndarray, Tensor, str]],
    embeds: Mapping[str, Embed],
    count: int,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Features float32 [count, D] of each entry of `embeds`, from one pass over the images.

    batches: (rows [B], images [B, 3, H, W], their modality); `rows` say where the features of a batch
    belong, and together they cover 0..count-1.
    """
    features: dict[str, np.ndarray] = {}
    for rows, images, modality in batches:
        images = images.to(device)
        for name, embed in embeds.items():
            with torch.inference_mode():
                found = embed(images, modality).cpu().numpy()
            features.setdefault(name, np.zeros((count, found.shape[1]), np.float32))[rows] = found
    return features
