"""Feature extraction: the features of every image of a table, for stage 1 and for evaluation.

Any callables can extract features, here (`extract_local`) or on a cluster (csdn.cluster.extract), from the
batches of csdn.data.loader. `extract_features` collects them and saves them now and then, so a killed run
resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from csdn.data.checkpoint_store import CheckpointStore, CheckpointTimer
from csdn.data.loader import ImageBatches, load_images
from csdn.params import Params

# Images [B, 3, H, W] of one modality -> features [B, D].
Embed = Callable[[Tensor, str], Tensor]
# Of a batch: the indices of its images [B], and by the name of each callable their features [B, D].
Embedded = tuple[np.ndarray, Mapping[str, Tensor]]
# Makes the callables, by name, on the given device; it can be pickled and sent to the machine of the device.
MakeEmbeds = Callable[[torch.device], Mapping[str, Embed]]
# extractor(batches, make_embeds, params, device, n): the features of the batches without their first n
# images.
Embedder = Callable[[ImageBatches, MakeEmbeds, Params, torch.device, int], Iterable[Embedded]]


PART_BATCHES = 256  # at most, of a saved part


def extract_local(
    batches: ImageBatches, make_embeds: MakeEmbeds, params: Params, device: torch.device, start: int
) -> Iterator[Embedded]:
    """The features as this process computes them, of images that the processes of a loader read."""
    embeds = make_embeds(device)
    for indices, images, modality in load_images(batches, params.scaling.loader_workers, start, device):
        yield indices, embed_batch(embeds, images, modality)


@torch.inference_mode()
def embed_batch(embeds: Mapping[str, Embed], images: Tensor, modality: str) -> dict[str, Tensor]:
    return {name: embed(images, modality) for name, embed in embeds.items()}


def extract_features(
    batches_from: Callable[[int], Iterable[Embedded]],
    count: int,
    state: CheckpointStore,
    report: Callable[[int, int], None],
    timer: CheckpointTimer | None = None,
) -> dict[str, np.ndarray]:
    """Features float32 [count, D] of each name, from one pass over the images.

    batches_from(n) gives the batches without the first n images. The indices of a batch say where its
    features belong; together they cover 0..count-1. New features are saved now and then as a part of their
    own, which is named by the number of images before it. So saving costs the same at the end of a long run
    as at its start.
    """
    features: dict[str, np.ndarray] = {}
    seen = saved = _load(features, count, state)
    timer = timer or CheckpointTimer()
    unsaved: list[np.ndarray] = []
    for indices, parts in batches_from(saved):
        _store(features, count, indices, parts)
        unsaved.append(indices)
        seen += len(indices)
        report(seen, count)
        if timer.due():
            with timer.saving():
                saved = _save(features, unsaved, saved, state)
            unsaved = []
    if unsaved:
        _save(features, unsaved, saved, state)
    return features


def _store(
    features: dict[str, np.ndarray], count: int, indices: np.ndarray, parts: Mapping[str, Tensor]
) -> None:
    for name, part in parts.items():
        features.setdefault(name, np.zeros((count, part.shape[1]), np.float32))[indices] = part.cpu().numpy()


def _save(
    features: Mapping[str, np.ndarray], unsaved: list[np.ndarray], done: int, state: CheckpointStore
) -> int:
    """Save the features of the unsaved indices after `done` saved images; returns how many are saved now.

    In parts of at most PART_BATCHES batches, since each is copied; a part ends between two batches.
    """
    for start in range(0, len(unsaved), PART_BATCHES):
        indices = np.concatenate(unsaved[start : start + PART_BATCHES])
        tensors = {name: torch.from_numpy(values[indices]) for name, values in features.items()}
        images = done + len(indices)
        state.part(f"after-{done}").save({"images": images}, {"rows": torch.from_numpy(indices), **tensors})
        done = images
    return done


def _load(features: dict[str, np.ndarray], count: int, state: CheckpointStore) -> int:
    """Load the saved features into `features`; returns of how many images they are, in the order of the
    batches.
    """
    done = 0
    while saved := state.part(f"after-{done}").load():
        position, tensors = saved
        _store(features, count, tensors.pop("rows").numpy(), tensors)
        done = position["images"]
    return done
