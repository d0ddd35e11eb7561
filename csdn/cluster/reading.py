"""What a task of Ray Data does that makes a batch of images for a network. It need not load torch."""

from __future__ import annotations

import numpy as np

from csdn.cluster.tasks import Block, own_memory
from csdn.data.rows import TestRows


class ReadImages:
    """Task n makes the images of step n: `images` float32 [1, B, 3, H, W] and `modality` [1].

    steps: (ordinals [B], modality) of each batch.
    """

    def __init__(self, rows: TestRows, steps: list[tuple[np.ndarray, str]]) -> None:
        self.rows, self.steps = rows, steps

    def __call__(self, number: int) -> Block:
        ordinals, modality = self.steps[number]
        images = own_memory(self.rows.shape, np.float32)[: len(ordinals)]
        self.rows.fill(ordinals, images)
        return {"images": images[None], "modality": np.array([modality])}
