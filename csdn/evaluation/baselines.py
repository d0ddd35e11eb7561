"""What computes a test feature: the trained model, and the baselines that it is compared with.

The baselines are CLIP without training, histograms of gradients, and chance.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csdn.data.rng import generator

if TYPE_CHECKING:
    from csdn.data.features import Embed
    from csdn.model import CSDN

CELLS = (16, 8)  # rows and columns of cells, for every image size
ORIENTATIONS = 9  # bins of the unsigned direction of the gradient
# A random stream of its own, far above those of csdn.data.rng.Stream.
_CHANCE = 1000


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


def chance_draws(seed: int, *counters: int) -> np.random.Generator:
    """The generator of chance's distances by (seed, counters): `random((queries, gallery))`, float64.

    Chance is simulated with one random ranking per query and trial. So it passes through the same rules as
    every other method, and its spread is that of figures from this number of queries. Drawn by blocks of
    queries, the distances are the same.
    """
    return generator(seed, _CHANCE, *counters)


def gradient_histograms(images: Tensor, modality: str) -> Tensor:
    """A HOG-like descriptor, [B, D], l2-normalised: gradient directions of grey values in a grid of cells.

    images: [B, 3, H, W], normalised in any affine way; both modalities are treated alike. Each cell
    averages the strength of its pixels' gradients by direction; blocks of 2x2 cells are normalised
    separately, which removes local contrast (Dalal and Triggs, CVPR 2005; bins not interpolated).
    """
    down, across = _gradients(images.mean(dim=1))
    strength = torch.hypot(down, across)
    share = torch.atan2(down, across) / torch.pi  # unsigned: -1..0 is 0..1
    direction = (share * ORIENTATIONS).floor().long().remainder(ORIENTATIONS)
    by_direction = F.one_hot(direction, ORIENTATIONS).movedim(-1, 1) * strength[:, None]
    cells = F.adaptive_avg_pool2d(by_direction, CELLS)  # [B, 9, 16, 8]
    corners = [cells[:, :, y : CELLS[0] - 1 + y, x : CELLS[1] - 1 + x] for y in (0, 1) for x in (0, 1)]
    blocks = F.normalize(torch.cat(corners, dim=1), dim=1, eps=1e-3)  # [B, 36, 15, 7]
    return F.normalize(blocks.flatten(1))


def _gradients(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences [B, H, W] down and across; the border pixels are repeated."""
    padded = F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1], padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
