"""Test features of images: the model's, with the horizontal flip beside it, and CLIP's without training."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from csdn.data.features import Embed
    from csdn.model import CSDN


def embed_with_flip_tta(model: CSDN, images: Tensor, modality: str) -> Tensor:
    """Retrieval feature [B, 2D]: the test features of each image and of its horizontal flip, concatenated.

    images: normalised floats [B, 3, H, W] of one modality, "visible" or "infrared"; model in evaluation
    mode. Two images are compared by the dot product of their features, -4 to 4. D is 3072 at RN50. Raises
    ValueError as `model.embed` does.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"images are a {type(images).__name__}; a tensor is needed (torch.from_numpy)")
    return with_flip_tta(model.embed, images, modality)


def with_flip_tta(embed: Embed, images: Tensor, modality: str) -> Tensor:
    """`embed` of the images and of their horizontal flips [B, 2D], in one pass of twice the batch."""
    features = embed(torch.cat([images, images.flip(-1)]), modality)
    return torch.cat(features.chunk(2), dim=1)


def clip_embed(model: CSDN) -> Embed:
    """CLIP without training: its attention pool's raw output g, l2-normalised."""

    def embed(images: Tensor, modality: str) -> Tensor:
        return F.normalize(model.image_embeddings(images, modality))

    return embed


def flipped(embed: Embed) -> Embed:
    """`embed` with flip TTA."""
    return partial(with_flip_tta, embed)
