"""Feature extraction on Ray: tasks of Ray Data read and decode, a pool of actors runs the networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from csdn.cluster.session import ray_session
from csdn.data.features import Embedded, MakeEmbeds, embed_batch
from csdn.data.loader import BATCHES_AHEAD, ImageBatches
from csdn.data.views import normalised
from csdn.model.device import worker_device
from csdn.params import Params

if TYPE_CHECKING:
    import ray.data


def extract_on_ray(
    batches: ImageBatches, make_embeds: MakeEmbeds, params: Params, _device: torch.device, start: int
) -> Iterator[Embedded]:
    """Extract with `scaling.workers` actors, each with a GPU if `scaling.use_gpu` is set."""
    steps, scaling = list(batches.steps(start)), params.scaling
    cores = scaling.workers * scaling.cpus_per_worker + max(1, scaling.loader_workers)
    with ray_session(scaling.address, cores):
        from csdn.cluster.ray_data import checked

        blocks = _dataset(batches, steps, make_embeds, params).iter_batches(
            batch_size=None, batch_format="numpy", prefetch_batches=BATCHES_AHEAD
        )
        for (indices, _), block in zip(steps, blocks, strict=True):
            features = checked(block).items()
            yield indices, {name: torch.tensor(rows[0]) for name, rows in features}


def _dataset(
    batches: ImageBatches,
    steps: list[tuple[np.ndarray, str]],
    make_embeds: MakeEmbeds,
    params: Params,
) -> ray.data.Dataset:
    """One block for each batch, in order, with a column [1, B, D] for each feature."""
    import ray

    from csdn.cluster.ray_data import ReadImages, TestImages, in_order

    images = batches.rows().images
    items = [TestImages(images.files.take(indices), modality) for indices, modality in steps]
    return in_order(items, ReadImages(images)).map_batches(
        _Extractor,
        fn_constructor_args=(ray.put(make_embeds), batches.normalize, params),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=params.scaling.workers),
        num_cpus=params.scaling.cpus_per_worker,
        num_gpus=1 if params.scaling.use_gpu else 0,
    )


class _Extractor:
    """An actor that holds the networks."""

    def __init__(self, make_embeds: Any, normalize: str, params: Params) -> None:
        import ray

        device = worker_device(params.scaling, params.training)
        self.device, self.normalize, self.embeds = device, normalize, ray.get(make_embeds)(device)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        from csdn.cluster.ray_data import failed

        if failed(block):
            return block
        pixels = torch.tensor(block["pixels"][0]).to(self.device)
        images = normalised(pixels, self.normalize)
        features = embed_batch(self.embeds, images, str(block["modality"][0]))
        return {name: rows.cpu().numpy()[None] for name, rows in features.items()}
