"""One walk over every image of a table, for stage 1 and for evaluation; a killed one goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from csdn.pace import Pace
from csdn.state import StageState

# Images [B, 3, H, W] of one modality -> features [B, D].
Embed = Callable[[Tensor, str], Tensor]
# Of a walk without its first n images: the rows of a batch [B], its images [B, 3, H, W], their modality.
BatchesFrom = Callable[[int], Iterable[tuple[np.ndarray, Tensor, str]]]


def embed_all(
    batches_from: BatchesFrom,
    embeds: Mapping[str, Embed],
    count: int,
    device: torch.device,
    state: StageState,
    pace: Pace | None = None,
) -> dict[str, np.ndarray]:
    """Features float32 [count, D] of each entry of `embeds`, from one pass over the images.

    The rows of a batch say where its features belong; together they cover 0..count-1. What is new is saved
    now and then, each time as a part of its own, named by the images before it: one of a million images
    costs no more to save than one of the first.
    """
    features: dict[str, np.ndarray] = {}
    done = _load(features, count, state)
    pace = pace or Pace()
    unsaved: list[np.ndarray] = []
    for rows, images, modality in batches_from(done):
        images = images.to(device)
        with torch.inference_mode():
            _put(features, count, rows, {name: embed(images, modality) for name, embed in embeds.items()})
        unsaved.append(rows)
        if pace.due():
            with pace.saving():
                done = _save(features, unsaved, done, state)
            unsaved = []
    if unsaved:
        _save(features, unsaved, done, state)
    return {name: features[name] for name in embeds}  # a file has them in another order


def _put(features: dict[str, np.ndarray], count: int, rows: np.ndarray, found: Mapping[str, Tensor]) -> None:
    for name, part in found.items():
        features.setdefault(name, np.zeros((count, part.shape[1]), np.float32))[rows] = part.cpu().numpy()


def _save(features: Mapping[str, np.ndarray], unsaved: list[np.ndarray], done: int, state: StageState) -> int:
    """Save the features of these rows, behind `done` saved images; returns how many are saved now."""
    rows = np.concatenate(unsaved)
    tensors = {name: torch.from_numpy(values[rows]) for name, values in features.items()}
    images = done + len(rows)
    state.part(f"after-{done}").save({"images": images}, {"rows": torch.from_numpy(rows), **tensors})
    return images


def _load(features: dict[str, np.ndarray], count: int, state: StageState) -> int:
    """Put what was saved into `features`; returns how many images, in the order of the walk, that is."""
    done = 0
    while saved := state.part(f"after-{done}").load():
        position, tensors = saved
        _put(features, count, tensors.pop("rows").numpy(), tensors)
        done = position["images"]
    return done
