"""What a trained model is held against beside CLIP as it is: chance, and gradients of grey values."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csdn.data.rng import generator

CELLS = (16, 8)  # rows and columns of cells that an image is divided into, whatever its size
ORIENTATIONS = 9  # bins of the gradient's direction, without its sign
# Own stream of randomness: far above those of csdn.data.rng.Stream.
_CHANCE = 1000


def chance_distances(queries: int, gallery: int, seed: int, *counters: int) -> np.ndarray:
    """Distances of somebody who guesses, float64 [queries, gallery], drawn by (seed, counters).

    Chance is simulated, one random ranking per query and trial: so it passes the same rules as every other
    method and shows the spread that figures of this size have by themselves.
    """
    return generator(seed, _CHANCE, *counters).random((queries, gallery))


def gradient_histograms(images: Tensor, modality: str) -> Tensor:
    """A descriptor like HOG, [B, D], l2-normalised: gradient directions of grey values in a grid of cells.

    images: [B, 3, H, W], normalised in any affine way; both modalities are treated alike. Each cell
    averages the strength of its pixels' gradients by direction; blocks of 2x2 cells are normalised on
    their own, so local contrast does not count (Dalal and Triggs, 2005; bins not interpolated).
    """
    down, across = _gradients(images.mean(dim=1))
    strength = torch.hypot(down, across)
    share = torch.atan2(down, across) / torch.pi  # a direction and its opposite are one: -1..0 is 0..1
    direction = (share * ORIENTATIONS).floor().long().remainder(ORIENTATIONS)
    by_direction = F.one_hot(direction, ORIENTATIONS).movedim(-1, 1) * strength[:, None]
    cells = F.adaptive_avg_pool2d(by_direction, CELLS)  # [B, 9, 16, 8]
    corners = [cells[:, :, y : CELLS[0] - 1 + y, x : CELLS[1] - 1 + x] for y in (0, 1) for x in (0, 1)]
    blocks = F.normalize(torch.cat(corners, dim=1), dim=1, eps=1e-3)  # [B, 36, 15, 7]
    return F.normalize(blocks.flatten(1))


def _gradients(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences [B, H, W] down and across; the border repeats its pixels."""
    padded = F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1], padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
