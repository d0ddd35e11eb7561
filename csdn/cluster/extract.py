"""Feature extraction spread over a cluster: Ray Data reads and decodes, a pool of actors embeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from csdn.cluster.session import ray_session
from csdn.data.batch import TestBatchReader
from csdn.data.features import Embedded, MakeEmbeds, embed_batch
from csdn.data.loader import BATCHES_AHEAD, ImageBatches
from csdn.model.device import configure_torch
from csdn.params import ScalingParams

if TYPE_CHECKING:
    import ray.data


def extract_on_ray(
    walk: ImageBatches, make_embeds: MakeEmbeds, scaling: ScalingParams, _device: torch.device, start: int
) -> Iterator[Embedded]:
    """Embedded by `scaling.workers` actors; each has a GPU where scaling.use_gpu says so."""
    steps = list(walk.steps(start))
    cores = scaling.workers * scaling.cpus_per_worker + max(1, scaling.loader_workers)
    with ray_session(scaling.address, cores):
        from csdn.cluster.ray_data import checked

        blocks = _dataset(walk.rows(), steps, make_embeds, scaling).iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=BATCHES_AHEAD
        )
        for (ordinals, _), block in zip(steps, blocks, strict=True):
            found = checked(block).items()
            yield ordinals, {name: torch.tensor(features[0]) for name, features in found}


def _dataset(
    rows: TestBatchReader,
    steps: list[tuple[np.ndarray, str]],
    make_embeds: MakeEmbeds,
    scaling: ScalingParams,
) -> ray.data.Dataset:
    """A block for each batch, in order: a column [1, B, D] for each embed."""
    import ray

    from csdn.cluster.ray_data import ReadImages, in_order

    return in_order(len(steps), ReadImages(rows, steps)).map_batches(
        _Embed,
        fn_constructor_args=(ray.put(make_embeds), scaling),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=scaling.workers),
        num_cpus=scaling.cpus_per_worker,
        num_gpus=1 if scaling.use_gpu else 0,
    )


class _Embed:
    """An actor with the networks."""

    def __init__(self, make_embeds: Any, scaling: ScalingParams) -> None:
        import ray

        device = configure_torch(
            scaling.threads or scaling.cpus_per_worker, "cuda" if scaling.use_gpu else "cpu"
        )
        self.device, self.embeds = device, ray.get(make_embeds)(device)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        from csdn.cluster.ray_data import failed

        if failed(block):
            return block
        images = torch.tensor(block["images"][0]).to(self.device)
        found = embed_batch(self.embeds, images, str(block["modality"][0]))
        return {name: features.cpu().numpy()[None] for name, features in found.items()}
