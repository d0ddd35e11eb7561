"""The eight losses of stage 2 and their sum (docs/method.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from csdn.losses import msel, semantic
from csdn.losses.checks import check_table
from csdn.losses.triplet import triplet_of
from csdn.model import CSDN, TrainingOutputs
from csdn.training.collectives import gather_rows

PRECISIONS = ("float32", "tf32", "bf16")
PUBLISHED_WEIGHTS = {"identity": 1.0, "msel": 1.0, "triplet": 0.15, "hse_visible": 0.05, "hse_infrared": 0.10}


def embedding_losses(
    model: CSDN,
    visible_view1: Tensor,
    visible_view2: Tensor,
    infrared: Tensor,
    labels: Tensor,
    text_table: Tensor,
    instances: int | None = None,
    weights: Mapping[str, float] = PUBLISHED_WEIGHTS,
    precision: str = "float32",
) -> dict[str, Tensor]:
    """Losses of one batch, scalars: id_gem, id_pool, triplet_gem, triplet_pool, msel_gem, msel_pool,
    hse_visible, hse_infrared (all unweighted), and total, their weighted sum.

    model: in training mode; visible_view1, visible_view2 (two augmentations of the same images), infrared:
    normalised floats [n, 3, H, W]; labels: integers [n], the people of all three; text_table: floats
    [identities, d], the fused text features; instances: images of a person in a batch and modality, by
    default what the labels say; weights: of the sum, by the names of PUBLISHED_WEIGHTS; precision: of the
    network's products, "bf16" or (for "float32" and "tf32") what torch and its weights have; losses are at
    least float32.

    Raises ValueError for a model in evaluation mode, tensors that do not fit one another, labels that are no
    rows of the table (on the CPU), people with different numbers of images where instances is not given,
    weights that are missing or not known, and an unknown precision.
    """
    _check(model, (visible_view1, visible_view2, infrared), labels, text_table, weights)
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}; allowed: {', '.join(PRECISIONS)}")
    with torch.autocast(infrared.device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs = model({"visible": torch.cat([visible_view1, visible_view2]), "infrared": infrared})
    if len(text_table) != outputs.gem_logits.shape[1]:
        people = outputs.gem_logits.shape[1]
        raise ValueError(f"text_table has {len(text_table)} rows, the network {people} people")
    if precision == "bf16":
        outputs = TrainingOutputs(*(part.float() for part in outputs))
    instances = images_of_each(labels) if instances is None else instances
    losses = batch_losses(outputs, labels, text_table, instances)
    return losses | {"total": weighted_sum(losses, weights)}


def batch_losses(
    outputs: TrainingOutputs, labels: Tensor, text_table: Tensor, instances: int
) -> dict[str, Tensor]:
    """The eight losses of outputs of 3n rows in the order view 1, view 2, infrared; labels: [n].

    With several workers these are of each one's part of the batch, and the batch's are their mean.
    """
    everybody = labels.repeat(3)
    in_batch = gather_rows(everybody)
    visible_f, _, infrared_f = outputs.gem.chunk(3)
    visible_g, _, infrared_g = outputs.pool.chunk(3)
    return {
        "id_gem": F.cross_entropy(outputs.gem_logits, everybody),
        "id_pool": F.cross_entropy(outputs.pool_logits, everybody),
        "triplet_gem": triplet_of(outputs.gem, everybody, gather_rows(outputs.gem), in_batch),
        "triplet_pool": triplet_of(outputs.pool, everybody, gather_rows(outputs.pool), in_batch),
        "msel_gem": msel(visible_f, infrared_f, labels, instances),
        "msel_pool": msel(visible_g, infrared_g, labels, instances),
        "hse_visible": semantic(visible_g, text_table, labels),
        "hse_infrared": semantic(infrared_g, text_table, labels),
    }


def _check(
    model: CSDN,
    images: Sequence[Tensor],
    labels: Tensor,
    text_table: Tensor,
    weights: Mapping[str, float],
) -> None:
    """Raise ValueError for what would give other numbers than a training step's, or an obscure error."""
    if not model.training:
        raise ValueError("the network is in evaluation mode; call model.train() before embedding_losses")
    if not all(isinstance(batch, Tensor) for batch in (*images, labels, text_table)):
        raise ValueError("images, labels and text_table must be tensors (torch.from_numpy)")
    if len({batch.shape for batch in images}) > 1 or len(images[0]) != len(labels):
        found = ", ".join(str(list(batch.shape)) for batch in images)
        raise ValueError(f"two views and infrared are {found}, labels {list(labels.shape)}: they do not fit")
    check_table(labels, text_table)
    if set(weights) != set(PUBLISHED_WEIGHTS):
        raise ValueError(f"weights {', '.join(weights)}; needed are {', '.join(PUBLISHED_WEIGHTS)}")


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The total: `identity`, `triplet` and `msel` weigh both branches, `hse_*` one modality each."""
    return (
        weights["identity"] * (losses["id_gem"] + losses["id_pool"])
        + weights["msel"] * (losses["msel_gem"] + losses["msel_pool"])
        + weights["triplet"] * (losses["triplet_gem"] + losses["triplet_pool"])
        + weights["hse_visible"] * losses["hse_visible"]
        + weights["hse_infrared"] * losses["hse_infrared"]
    )


def images_of_each(labels: Tensor) -> int:
    """K of a batch; raises ValueError where the people do not all have as many images."""
    counts = labels.unique(return_counts=True)[1]
    if len(counts.unique()) != 1:
        raise ValueError(f"people with {counts.tolist()} images in one batch: each must have the same number")
    return int(counts[0])
