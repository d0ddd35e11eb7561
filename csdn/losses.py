"""The training objectives of CSDN (arXiv 2401.05806).

1. `supcon_loss`: image features against text features, both phases of stage 1.
2. `wrt_loss`: weighted regularised triplet loss, stage 2.
3. `msel_loss`: modality-shared enhancement loss, stage 2.
4. `hse_loss`: high-level semantic embedding, image features against the fused texts, stage 2.
5. `embedding_losses`: the eight losses of one batch of stage 2 and their weighted sum.
6. The checks of arguments: broadcasting would turn tensors that do not fit into a number without an error.

In the shapes, n is the number of rows and d the width of a feature. Every loss is a scalar; for an empty
batch 1 to 4 give zero. docs/method.md lists where we differ from the published implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from csdn.model import TrainingOutputs

# 1. SupCon, the supervised contrastive loss (arXiv 2004.11362), between two sets of features.


def supcon_loss(a: Tensor, b: Tensor, labels_a: Tensor, labels_b: Tensor) -> Tensor:
    """- mean_i mean_{j: labels_b[j] = labels_a[i]} log softmax_j(a_i . b_j): raw dot products, temperature 1.

    a: floats [n, d]; b: [m, d]; labels_a: integers [n]; labels_b: [m]. Returns a scalar of their type. A row
    of `a` without a positive in `b` contributes zero to the mean. Raises ValueError for arguments that are
    not tensors and for shapes that do not fit.

    >>> rows = torch.zeros(1, 2), torch.zeros(2, 2)
    >>> round(supcon_loss(*rows, torch.tensor([0]), torch.tensor([0, 1])).item(), 4)  # log 2: equal scores
    0.6931
    """
    check_features("a", a, "labels_a", labels_a)
    check_features("b", b, "labels_b", labels_b)
    check_same_width("a", a, "b", b)
    same = labels_a[:, None] == labels_b
    log_likelihood = torch.log_softmax(a @ b.T, dim=1).masked_fill(~same, 0)
    positives = same.sum(1).clamp(min=1)
    return -(log_likelihood.sum(1) / positives).sum() / max(len(a), 1)


# 2. WRT, the weighted regularised triplet loss (AGW, arXiv 2001.04193). It uses every pair of the batch,
# weighs hard pairs more, and has no margin.


def wrt_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Mean over the anchors i of softplus(P_i - N_i).

    P_i is the weighted mean distance of i to the rows of its own identity, N_i that to all other rows. The
    weights are a softmax over +distance and over -distance: far positives and near negatives count most.

    features: floats [n, d], not normalised; labels: integers [n]. Returns a scalar, at least float32; the
    value is finite for a batch without negatives, too. Softplus equals the published log(1 + exp(x)), which
    overflows at large distances. Raises ValueError for arguments that are not tensors and for shapes that do
    not fit.
    """
    check_features("features", features, "labels", labels)
    return wrt_loss_of_anchors(features, labels, features, labels)


def wrt_loss_of_anchors(anchors: Tensor, anchor_labels: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """`wrt_loss(features, labels)` with the mean over some anchors only: those of one worker.

    anchors: [m, d], rows of features [n, d]; anchor_labels: [m]; labels: [n].
    """
    distances = euclidean(anchors, features)
    same = anchor_labels[:, None] == labels
    positive = (_weights(distances, same) * distances).sum(1)
    negative = (_weights(-distances, ~same) * distances).sum(1)
    return F.softplus(positive - negative).sum() / max(len(anchors), 1)


def _weights(scores: Tensor, mask: Tensor) -> Tensor:
    """exp(score - max) / (sum + 1e-6) within the mask, zero outside it; scores, mask: [m, n].

    As in the published code, max is taken over scores * mask, zeros included. Because of the 1e-6 this
    changes the value: the weights sum to less than one where all scores are far below zero.
    """
    if not len(scores):
        return scores
    masked = scores.masked_fill(~mask, 0)
    exponentials = (masked - masked.amax(1, keepdim=True)).exp().masked_fill(~mask, 0)
    return exponentials / (exponentials.sum(1, keepdim=True) + 1e-6)


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Distances [n, m] between the rows of a [n, d] and b [m, d]: sqrt(max(d^2, 1e-12)), at least float32.

    Computed from the differences: with d^2 = |a|^2 + |b|^2 - 2 a.b, equal rows would be some 0.03 apart in
    float32. The lower bound keeps the gradient finite (zero) where rows are equal.
    """
    precision = torch.promote_types(a.dtype, torch.float32)
    a, b = a.to(precision), b.to(precision)
    if not a.is_cpu:
        return _Distances.apply(a, b)
    return _cdist(a, b).clamp(min=_LEAST_DISTANCE)


_LEAST_DISTANCE = 1e-6


def _cdist(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


class _Distances(torch.autograd.Function):
    """`euclidean` on GPUs, where torch's backward pass allocates [m, n, d]: 39 GB for 96 of 49,152 rows.

    With w = gradient / distance, the gradient of a_i is sum_j w_ij (a_i - b_j), a product of matrices. It
    loses fewer digits where rows are taken relative to their mean. On CPUs torch sums the differences.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        distances = _cdist(a, b).clamp_(min=_LEAST_DISTANCE)
        ctx.save_for_backward(a, b, distances)
        return distances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        a, b, distances = ctx.saved_tensors
        weights = (gradient / distances).masked_fill_(distances <= _LEAST_DISTANCE, 0)
        centre = b.mean(0)
        a, b = a - centre, b - centre
        return (
            torch.addmm(weights.sum(1)[:, None] * a, weights, b, alpha=-1),
            torch.addmm(weights.sum(0)[:, None] * b, weights.T, a, alpha=-1),
        )


# 3. MSEL, the modality-shared enhancement loss (PMT, arXiv 2212.00226): the distances between images of one
# identity should be the same across the modalities as within a modality.


def msel_loss(visible: Tensor, infrared: Tensor, labels: Tensor, instances: int) -> Tensor:
    """Half of [mean over visible + mean over infrared] of (cross - intra)^2.

    For each image, intra is its mean distance to the K - 1 other images of its identity in its own modality,
    and cross its mean distance to the K images of its identity in the other modality.

    visible, infrared: floats [n, d], not normalised; labels: integers [n], the identities of both; instances:
    K, images per identity and modality (labels are not counted to check it). Returns a scalar, at least
    float32. Raises ValueError for arguments that are not tensors, shapes that do not fit, and instances < 1.
    """
    check_features("visible", visible, "labels", labels)
    check_features("infrared", infrared, "labels", labels)
    check_same_width("visible", visible, "infrared", infrared)
    check_instances(instances)
    return _msel_of_images(visible, infrared, labels, instances).sum() / (2 * max(len(labels), 1))


def _msel_of_images(visible: Tensor, infrared: Tensor, labels: Tensor, instances: int) -> Tensor:
    """[n]: (cross - intra)^2 of visible image i and of infrared image i together."""
    same = labels[:, None] == labels
    cross = euclidean(visible, infrared).masked_fill(~same, 0)
    gap_visible = _mean_of_largest(cross, instances) - _intra(visible, same, instances)
    gap_infrared = _mean_of_largest(cross.T, instances) - _intra(infrared, same, instances)
    return gap_visible.square() + gap_infrared.square()


def _intra(features: Tensor, same: Tensor, instances: int) -> Tensor:
    """Of the K distances within an identity the K - 1 largest: all but the image's distance to itself."""
    return _mean_of_largest(euclidean(features, features).masked_fill(~same, 0), instances - 1)


def _mean_of_largest(distances: Tensor, count: int) -> Tensor:
    """Mean [n] of the `count` largest distances of each row [n, m]; zero for a count of 0."""
    largest = distances.topk(min(count, distances.shape[1]), dim=1).values
    return largest.sum(1) / max(count, 1)


# 4. HSE, high-level semantic embedding: each image feature is classified among the fused texts of all
# identities.


def hse_loss(features: Tensor, text_table: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of features . text_table^T, raw dot products.

    features: floats [n, d]; text_table: [identities, d]; labels: integers [n], rows of the table. Raises
    ValueError for arguments that are not tensors, shapes that do not fit, and (on the CPU, see
    `check_label_range`) for a label that is not a row of the table.
    """
    check_features("features", features, "labels", labels)
    check_same_width("features", features, "text_table", text_table)
    check_label_range(labels, text_table)
    return F.cross_entropy(features @ text_table.T, labels, reduction="sum") / max(len(labels), 1)


# 5. The objective of stage 2: identity, WRT and MSEL losses on both branches, HSE for both modalities, and
# the weighted sum of these eight.


PRECISIONS = ("float32", "tf32", "bf16")
PUBLISHED_WEIGHTS = {"identity": 1.0, "msel": 1.0, "triplet": 0.15, "hse_visible": 0.05, "hse_infrared": 0.10}

Gather = Callable[[Tensor], Tensor]  # rows [n, ...] of this worker -> rows of all workers, with gradient


def one_worker(rows: Tensor) -> Tensor:
    """The gather of a single process: its rows are the whole batch."""
    return rows


def embedding_losses(
    model: nn.Module,
    visible_view1: Tensor,
    visible_view2: Tensor,
    infrared: Tensor,
    labels: Tensor,
    text_table: Tensor,
    instances: int | None = None,
    weights: Mapping[str, float] = PUBLISHED_WEIGHTS,
    precision: str = "float32",
    gather: Gather = one_worker,
    rank: int = 0,
) -> dict[str, Tensor]:
    """The losses of one batch, scalars: id_gem, id_pool, triplet_gem, triplet_pool, msel_gem, msel_pool,
    hse_visible, hse_infrared (all unweighted), and total, their weighted sum.

    model: a CSDN in training mode, or what DistributedDataParallel or torch.compile makes of one
    visible_view1, visible_view2, infrared: normalised floats [n, 3, H, W]; the views are two augmentations of
        the same images
    labels: integers [n], the identities of all three
    text_table: floats [identities, d], the fused text features
    instances: images per identity and modality in the batch; by default counted from the labels
    weights: of the sum, with the keys of PUBLISHED_WEIGHTS
    precision: "bf16" runs the network under autocast; "float32" and "tf32" leave torch's setting as it is.
        The losses themselves are at least float32
    gather: where several workers (torch.distributed) share a batch,
        `csdn.training.distributed.all_gather_with_grad`; the losses are then those of this worker's part
    rank: this worker's number. Worker r has rows r n to (r + 1) n of the batch, which is grouped by identity;
        an identity's images may be those of several workers

    Raises ValueError for a model in evaluation mode, tensors that do not fit one another, labels that are not
    rows of the table (on the CPU), identities with different numbers of images where `instances` is not
    given, missing or unknown weights, and an unknown precision.
    """
    _check_batch(model, (visible_view1, visible_view2, infrared), labels, text_table, weights)
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}; allowed: {', '.join(PRECISIONS)}")
    with torch.autocast(infrared.device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
        images = {"visible": torch.cat([visible_view1, visible_view2]), "infrared": infrared}
        outputs: TrainingOutputs = model(images)
    identities = outputs.gem_logits.shape[1]
    if len(text_table) != identities:
        raise ValueError(f"text_table has {len(text_table)} rows, the network {identities} identities")
    if precision == "bf16":
        outputs = TrainingOutputs(*(part.float() for part in outputs))
    instances = instances_per_identity(labels) if instances is None else instances
    losses = batch_losses(outputs, labels, text_table, instances, gather, rank)
    return losses | {"total": weighted_sum(losses, weights)}


def batch_losses(
    outputs: TrainingOutputs,
    labels: Tensor,
    text_table: Tensor,
    instances: int,
    gather: Gather = one_worker,
    rank: int = 0,
) -> dict[str, Tensor]:
    """The eight losses of outputs of 3n rows, in the order view 1, view 2, infrared; labels: [n].

    gather, rank: as in `embedding_losses`. A worker's losses are means over its own images, so those of the
    whole batch are the means of the workers'. The triplet loss compares its images with all of the batch,
    MSEL with the others of their identity; the other losses compare them with constants.
    """
    check_instances(instances)
    labels_of_all = labels.repeat(3)
    gathered_labels = gather(labels_of_all)
    # MSEL and HSE use the first visible view only.
    gem_views, pool_views = outputs.gem.chunk(3), outputs.pool.chunk(3)
    gathered_gem, gathered_pool = gather(outputs.gem), gather(outputs.pool)
    people = _PeopleOfWorker(len(labels), instances, rank)

    def triplet(features: Tensor, gathered: Tensor) -> Tensor:
        return wrt_loss_of_anchors(features, labels_of_all, gathered, gathered_labels)

    def msel(views: Sequence[Tensor], gathered: Tensor) -> Tensor:
        if people.whole:
            return msel_loss(views[0], views[2], labels, instances)
        visible, _, infrared = people.rows(gathered)
        of_images = _msel_of_images(visible, infrared, people.rows(gathered_labels)[0], instances)
        return of_images[people.own].sum() / (2 * len(labels))

    return {
        "id_gem": F.cross_entropy(outputs.gem_logits, labels_of_all),
        "id_pool": F.cross_entropy(outputs.pool_logits, labels_of_all),
        "triplet_gem": triplet(outputs.gem, gathered_gem),
        "triplet_pool": triplet(outputs.pool, gathered_pool),
        "msel_gem": msel(gem_views, gathered_gem),
        "msel_pool": msel(pool_views, gathered_pool),
        "hse_visible": hse_loss(pool_views[0], text_table, labels),
        "hse_infrared": hse_loss(pool_views[2], text_table, labels),
    }


class _PeopleOfWorker:
    """Where the images are of all people of whom worker `rank` has some.

    count: images of the worker in each view; instances: of a person. `whole`: whether it has all images of
    its people. `own`: where its images are among those of `rows`.
    """

    def __init__(self, count: int, instances: int, rank: int) -> None:
        self.count = count
        self.whole = count % instances == 0
        first, last = rank * count, (rank + 1) * count
        self.start, self.stop = first - first % instances, last + -last % instances
        self.own = slice(first - self.start, last - self.start)

    def rows(self, gathered: Tensor) -> tuple[Tensor, ...]:
        """View 1, view 2 and infrared; gathered: [workers * 3 * count, ...], worker by worker."""
        begin, end = self.start // self.count, -(-self.stop // self.count)  # the workers who have them
        views = gathered.unflatten(0, (-1, 3, self.count))[begin:end].transpose(0, 1).flatten(1, 2)
        skipped = begin * self.count
        return views[:, self.start - skipped : self.stop - skipped].unbind(0)


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The total: `identity`, `msel` and `triplet` weigh both branches, `hse_*` one modality each."""
    return (
        weights["identity"] * (losses["id_gem"] + losses["id_pool"])
        + weights["msel"] * (losses["msel_gem"] + losses["msel_pool"])
        + weights["triplet"] * (losses["triplet_gem"] + losses["triplet_pool"])
        + weights["hse_visible"] * losses["hse_visible"]
        + weights["hse_infrared"] * losses["hse_infrared"]
    )


def instances_per_identity(labels: Tensor) -> int:
    """K of a batch; raises ValueError where identities have different numbers of images."""
    counts = labels.unique(return_counts=True)[1]
    if len(counts.unique()) != 1:
        raise ValueError(
            f"identities with {counts.tolist()} images in one batch: each must have the same number"
        )
    return int(counts[0])


# 6. Checks of arguments.


def check_features(name: str, features: Tensor, labels_name: str, labels: Tensor) -> None:
    """Raise ValueError unless features are floats [n, d] and labels integers [n]."""
    for what, found in ((name, features), (labels_name, labels)):
        if not isinstance(found, Tensor):
            raise ValueError(f"{what} is a {type(found).__name__}; a tensor is needed (torch.from_numpy)")
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(f"{name} is {_describe(features)}; floats [n, d] are needed")
    if labels.shape != features.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"{labels_name} is {_describe(labels)}; one integer for each of the {len(features)} rows of "
            f"{name} is needed"
        )


def check_same_width(name: str, one: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both are matrices with the same number of columns."""
    if other.ndim != 2 or one.shape[1] != other.shape[1]:
        found = f"{name} is {_describe(one)}, {other_name} {_describe(other)}"
        raise ValueError(f"{found}; rows of the same length are needed")


def check_instances(instances: int) -> None:
    """Raise ValueError for a K that no batch has."""
    if instances < 1:
        raise ValueError(f"instances = {instances}: each identity needs at least one image per modality")


def check_label_range(labels: Tensor, table: Tensor) -> None:
    """Raise ValueError for a label that is not a row of the table.

    Only on the CPU: reading values from a GPU would make each step wait for it.
    """
    if labels.device.type == "cpu" and len(labels):
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= len(table):
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"label {wrong} is not a row of the text table (0 to {len(table) - 1})")


def _check_batch(
    model: nn.Module,
    images: Sequence[Tensor],
    labels: Tensor,
    text_table: Tensor,
    weights: Mapping[str, float],
) -> None:
    """Raise ValueError for what would give other losses than a training step's, or an obscure error."""
    if not model.training:
        raise ValueError("the network is in evaluation mode; call model.train() before embedding_losses")
    if not all(isinstance(batch, Tensor) for batch in (*images, labels, text_table)):
        raise ValueError("images, labels and text_table must be tensors (torch.from_numpy)")
    if len({batch.shape for batch in images}) > 1 or len(images[0]) != len(labels):
        found = ", ".join(str(list(batch.shape)) for batch in images)
        raise ValueError(f"two views and infrared are {found}, labels {list(labels.shape)}: they do not fit")
    check_label_range(labels, text_table)
    if set(weights) != set(PUBLISHED_WEIGHTS):
        raise ValueError(f"weights {', '.join(weights)}; needed are {', '.join(PUBLISHED_WEIGHTS)}")


def _describe(tensor: Tensor) -> str:
    """As in "float32 [8, 16]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
