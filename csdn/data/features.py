"""One walk over every image of a table, for stage 1 and for evaluation; a killed one goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from csdn.data.loader import ImageBatches, load_images
from csdn.data.state import CheckpointTimer, StageState
from csdn.params import ScalingParams

# Images [B, 3, H, W] of one modality -> features [B, D].
Embed = Callable[[Tensor, str], Tensor]
# Of a batch: its rows [B], and their features [B, D] by each embed's name.
Embedded = tuple[np.ndarray, Mapping[str, Tensor]]
# Embeds by name, on the device that it is called with; it can travel to where that device is.
MakeEmbeds = Callable[[torch.device], Mapping[str, Embed]]
# embedder(walk, make_embeds, scaling, device, n): the batches of a walk without its first n images, embedded.
Embedder = Callable[[ImageBatches, MakeEmbeds, ScalingParams, torch.device, int], Iterable[Embedded]]


def extract_local(
    walk: ImageBatches, make_embeds: MakeEmbeds, scaling: ScalingParams, device: torch.device, start: int
) -> Iterator[Embedded]:
    """Embedded by this process, which `scaling.loader_workers` others feed."""
    embeds = make_embeds(device)
    for ordinals, images, modality in load_images(walk, scaling.loader_workers, start):
        yield ordinals, embed_batch(embeds, images.to(device), modality)


@torch.inference_mode()
def embed_batch(embeds: Mapping[str, Embed], images: Tensor, modality: str) -> dict[str, Tensor]:
    return {name: embed(images, modality) for name, embed in embeds.items()}


def extract_features(
    batches_from: Callable[[int], Iterable[Embedded]],
    count: int,
    state: StageState,
    report: Callable[[int, int], None],
    pace: CheckpointTimer | None = None,
) -> dict[str, np.ndarray]:
    """Features float32 [count, D] of each name, from one pass over the images.

    The rows of a batch say where its features belong; together they cover 0..count-1. What is new is saved
    now and then, each time as a part of its own, named by the images before it: one of a million images
    costs no more to save than one of the first.
    """
    features: dict[str, np.ndarray] = {}
    seen = saved = _load(features, count, state)
    pace = pace or CheckpointTimer()
    unsaved: list[np.ndarray] = []
    for rows, found in batches_from(saved):
        _put(features, count, rows, found)
        unsaved.append(rows)
        seen += len(rows)
        report(seen, count)
        if pace.due():
            with pace.saving():
                saved = _save(features, unsaved, saved, state)
            unsaved = []
    if unsaved:
        _save(features, unsaved, saved, state)
    return features


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
