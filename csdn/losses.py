"""What the losses refuse: by broadcasting, tensors that do not fit would give a number all the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from csdn.model import CSDN, TrainingOutputs
from csdn.training.distributed import all_gather_with_grad


def check_rows(name: str, features: Tensor, labels_name: str, labels: Tensor) -> None:
    """Raise ValueError unless features are [n, d] and labels integers [n]."""
    for what, found in ((name, features), (labels_name, labels)):
        if not isinstance(found, Tensor):
            raise ValueError(f"{what} is a {type(found).__name__}; a tensor is needed (torch.from_numpy)")
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(f"{name} is {described(features)}; floats [rows, numbers] are needed")
    if labels.shape != features.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"{labels_name} is {described(labels)}; one integer for each of the {len(features)} rows of "
            f"{name} is needed"
        )


def check_same_width(name: str, one: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both are matrices of as many columns."""
    if other.ndim != 2 or one.shape[1] != other.shape[1]:
        found = f"{name} is {described(one)}, {other_name} {described(other)}"
        raise ValueError(f"{found}; rows of the same length are needed")


def check_table(labels: Tensor, table: Tensor) -> None:
    """Raise ValueError where a label is no row of the table; a GPU is not asked, as that waits for it."""
    if labels.device.type == "cpu" and len(labels):
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= len(table):
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"label {wrong} is no row of the text table (0 to {len(table) - 1})")


def described(tensor: Tensor) -> str:
    """As in "float32 [8, 16]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


# Euclidean distances between two sets of features, with a gradient that exists everywhere.


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Distances [n, m] between the rows of a [n, d] and b [m, d]: sqrt(max(d^2, 1e-12)), at least float32.

    Taken from the differences: by d^2 = |a|^2 + |b|^2 - 2 a.b equal rows would come out some 0.03 apart in
    float32. The bound keeps the gradient finite where rows are equal (it is zero there).
    """
    precision = torch.promote_types(a.dtype, torch.float32)
    a, b = a.to(precision), b.to(precision)
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=1e-6)


# Supervised contrast between two sets of features: stage 1 ties images and texts of a person.


def supcon_loss(a: Tensor, b: Tensor, labels_a: Tensor, labels_b: Tensor) -> Tensor:
    """- mean_i mean_{j: labels_b[j] = labels_a[i]} log softmax_j(a_i . b_j): raw dot products, temperature 1.

    a: floats [n, d]; b: [m, d]; labels_a: integers [n]; labels_b: [m]. Returns a scalar of their type. A row
    of `a` without a partner in `b` adds nothing; no rows at all give zero. Raises ValueError for shapes that
    do not fit, and for anything but tensors.

    >>> rows = torch.zeros(1, 2), torch.zeros(2, 2)
    >>> round(supcon(*rows, torch.tensor([0]), torch.tensor([0, 1])).item(), 4)  # log 2: two equal candidates
    0.6931
    """
    check_rows("a", a, "labels_a", labels_a)
    check_rows("b", b, "labels_b", labels_b)
    check_same_width("a", a, "b", b)
    same = labels_a[:, None] == labels_b
    log_likelihood = torch.log_softmax(a @ b.T, dim=1).masked_fill(~same, 0)
    partners = same.sum(1).clamp(min=1)
    return -(log_likelihood.sum(1) / partners).sum() / max(len(a), 1)


# WRT, the weighted-regularised triplet loss (AGW): every pair counts, hard ones more; there is no margin.


def wrt_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Mean over i of softplus(P_i - N_i), the weighted distances of i to its own person and to the others.

    features: floats [n, d], not normalised; labels: integers [n]. Returns a scalar, at least float32. Raises
    ValueError for shapes that do not fit, and for anything but tensors. Far positives and near negatives
    weigh most (a softmax of +d and of -d over each set). A batch without negatives, or without rows, gives a
    finite value too; softplus does not overflow at large distances, where log(1 + exp(x)) does.
    """
    check_rows("features", features, "labels", labels)
    return gathered_wrt_loss(features, labels, features, labels)


def gathered_wrt_loss(anchors: Tensor, anchor_labels: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """The part of `weighted_triplet(features, labels)` that some of its rows have: their mean.

    anchors: [m, d] rows of features [n, d]; anchor_labels: [m]; labels: [n].
    """
    distances = euclidean(anchors, features)
    same = anchor_labels[:, None] == labels
    positive = (_weights(distances, same) * distances).sum(1)
    negative = (_weights(-distances, ~same) * distances).sum(1)
    return F.softplus(positive - negative).sum() / max(len(anchors), 1)


def _weights(scores: Tensor, mask: Tensor) -> Tensor:
    """exp(score - max) / (sum + 1e-6) over the mask, zero outside it; scores, mask: [m, n].

    The maximum is taken over the masked matrix, zeros included: with the 1e-6 it decides the value, so this
    is not quite a softmax where all the scores are far below zero.
    """
    if not len(scores):
        return scores
    masked = scores.masked_fill(~mask, 0)
    exponentials = (masked - masked.amax(1, keepdim=True)).exp().masked_fill(~mask, 0)
    return exponentials / (exponentials.sum(1, keepdim=True) + 1e-6)


# MSEL: the distances of a person's images across the modalities should be those within a modality.


def msel_loss(visible: Tensor, infrared: Tensor, labels: Tensor, instances: int) -> Tensor:
    """Half of [mean over visible + mean over infrared] of (cross - intra)^2.

    visible, infrared: floats [n, d], not normalised; labels: integers [n], the people of both; instances: K,
    the images of a person in each modality (taken as given: labels are not counted). intra: mean of the K - 1
    largest distances to the same person in the same modality (all but the image itself); cross: mean of the K
    distances to the same person in the other one. Returns a scalar, at least float32; no rows give zero.
    Raises ValueError for shapes that do not fit, for anything but tensors, and for instances below 1.
    """
    check_rows("visible", visible, "labels", labels)
    check_rows("infrared", infrared, "labels", labels)
    check_same_width("visible", visible, "infrared", infrared)
    if instances < 1:
        raise ValueError(f"instances = {instances}: a person has one image in each modality at least")
    same = labels[:, None] == labels
    cross = euclidean(visible, infrared).masked_fill(~same, 0)
    gap_visible = _mean_largest(cross, instances) - _intra(visible, same, instances)
    gap_infrared = _mean_largest(cross.T, instances) - _intra(infrared, same, instances)
    return (gap_visible.square() + gap_infrared.square()).sum() / (2 * max(len(labels), 1))


def _intra(features: Tensor, same: Tensor, instances: int) -> Tensor:
    return _mean_largest(euclidean(features, features).masked_fill(~same, 0), instances - 1)


def _mean_largest(distances: Tensor, count: int) -> Tensor:
    """Mean [n] of the `count` largest distances of each row [n, m]; zero where nothing is counted."""
    largest = distances.topk(min(count, distances.shape[1]), dim=1).values
    return largest.sum(1) / max(count, 1)


# HSE, high-level semantic embedding: an image feature names its person among all the fused texts.


def hse_loss(features: Tensor, text_table: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of features . text_table^T, raw dot products.

    features: floats [n, d]; text_table: [identities, d]; labels: integers [n], rows of the table. Returns a
    scalar; no rows give zero. Raises ValueError for shapes that do not fit, for anything but tensors, and (on
    the CPU, where it costs nothing) for a label that is no row of the table.
    """
    check_rows("features", features, "labels", labels)
    check_same_width("features", features, "text_table", text_table)
    check_table(labels, text_table)
    return F.cross_entropy(features @ text_table.T, labels, reduction="sum") / max(len(labels), 1)


# The eight losses of stage 2 and their sum (docs/method.md).


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
    in_batch = all_gather_with_grad(everybody)
    visible_f, _, infrared_f = outputs.gem.chunk(3)
    visible_g, _, infrared_g = outputs.pool.chunk(3)
    return {
        "id_gem": F.cross_entropy(outputs.gem_logits, everybody),
        "id_pool": F.cross_entropy(outputs.pool_logits, everybody),
        "triplet_gem": gathered_wrt_loss(outputs.gem, everybody, all_gather_with_grad(outputs.gem), in_batch),
        "triplet_pool": gathered_wrt_loss(
            outputs.pool, everybody, all_gather_with_grad(outputs.pool), in_batch
        ),
        "msel_gem": msel_loss(visible_f, infrared_f, labels, instances),
        "msel_pool": msel_loss(visible_g, infrared_g, labels, instances),
        "hse_visible": hse_loss(visible_g, text_table, labels),
        "hse_infrared": hse_loss(infrared_g, text_table, labels),
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
