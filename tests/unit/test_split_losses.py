"""Losses of a batch that workers share: the numbers of one process, no large tensors, no wait for a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import cost_model as cost

from csdn.losses import (
    PUBLISHED_WEIGHTS,
    _Distances,
    batch_losses,
    euclidean,
    weighted_sum,
    wrt_loss_of_anchors,
)
from csdn.model import TrainingOutputs

IDENTITIES, GEM, POOL = 9, 12, 6


def random_outputs(pairs):
    generator = torch.Generator().manual_seed(pairs)
    widths = (GEM, POOL, IDENTITIES, IDENTITIES)
    return [torch.randn(3, pairs, width, generator=generator, dtype=torch.float64) for width in widths]


def parts_losses(parts, labels, table, instances, workers):
    """The mean over the workers of each loss; parts: [3, P*K, width]. All workers' rows are in one graph."""
    share = len(labels) // workers
    ranks = [slice(rank * share, (rank + 1) * share) for rank in range(workers)]
    rows = [TrainingOutputs(*(part[:, own].flatten(0, 1) for part in parts)) for own in ranks]
    gathered = {
        GEM: torch.cat([one.gem for one in rows]),
        POOL: torch.cat([one.pool for one in rows]),
        None: torch.cat([labels[own].repeat(3) for own in ranks]),
    }

    def gather(tensor):
        return gathered[tensor.shape[1] if tensor.ndim > 1 else None]

    of_ranks = [
        batch_losses(one, labels[own], table, instances, gather, rank)
        for rank, (own, one) in enumerate(zip(ranks, rows, strict=True))
    ]
    losses = {name: torch.stack([one[name] for one in of_ranks]).mean() for name in of_ranks[0]}
    return losses | {"total": weighted_sum(losses, PUBLISHED_WEIGHTS)}


@pytest.mark.parametrize(
    ("people", "instances", "workers"),
    [(4, 4, n) for n in (2, 4, 8, 16)] + [(6, 2, n) for n in (3, 4, 12)] + [(3, 5, 3), (3, 5, 5), (3, 4, 2)],
)
def test_any_number_of_workers_has_the_losses_and_gradients_of_one(people, instances, workers):
    labels = torch.randperm(IDENTITIES)[:people].repeat_interleave(instances)
    parts = [part.requires_grad_() for part in random_outputs(people * instances)]
    table = torch.randn(IDENTITIES, POOL, dtype=torch.float64)
    one = batch_losses(TrainingOutputs(*(part.flatten(0, 1) for part in parts)), labels, table, instances)
    one |= {"total": weighted_sum(one, PUBLISHED_WEIGHTS)}
    several = parts_losses(parts, labels, table, instances, workers)
    for name, loss in one.items():
        torch.testing.assert_close(several[name], loss, rtol=1e-12, atol=0, msg=name)
    wanted, found = (torch.autograd.grad(losses["total"], parts) for losses in (one, several))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-14)


def points(rows, dtype=torch.float64):
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(rows), dtype=dtype)


def test_the_gradient_of_distances_as_products_is_exact():
    a, b = (points(rows).requires_grad_() for rows in (3, 4))
    assert torch.autograd.gradcheck(_Distances.apply, (a, b))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_distances_and_gradient_are_those_of_the_cpu_also_of_equal_rows_far_from_zero(dtype, tolerance):
    a = 100 + points(6, dtype)
    a[1], a[2] = a[0], a[0] + 1e-2
    upstream = points(6, dtype)[:, :1] * points(6, dtype)[:, 1]
    found, gradients = [], []
    for function in (euclidean, _Distances.apply):
        rows = a.clone().requires_grad_()
        found.append(function(rows, rows))
        gradients.append(torch.autograd.grad(found[-1], rows, upstream)[0])
    assert torch.equal(*found)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=tolerance, atol=tolerance)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("pairs", [32, 6])  # whole people, and parts of people
def test_a_worker_of_512_needs_memory_for_its_own_rows_of_distances_and_never_reads_from_the_device(pairs):
    """On the meta device: reading a value there, as a GPU would have to wait for it, is an error."""
    workers, width, identities, instances = 512, 2048, 395, 4
    with torch.device("meta"):
        widths = (width, width // 2, identities, identities)
        parts = [torch.empty(3 * pairs, size, requires_grad=True) for size in widths]
        labels, table = torch.empty(pairs, dtype=torch.long), torch.empty(identities, width // 2)
        with LargestTensor() as largest:
            losses = batch_losses(
                TrainingOutputs(*parts),
                labels,
                table,
                instances,
                gather=lambda rows: rows.repeat(workers, *[1] * (rows.ndim - 1)),
                rank=3,
            )
            weighted_sum(losses, PUBLISHED_WEIGHTS).backward()
    rows = 3 * pairs * workers
    assert largest.elements == rows * width == cost.gathered_bytes(rows, width) / cost.FLOAT


def test_wrt_keeps_the_pairs_of_a_worker_s_own_rows_with_all():
    """And as many matrices of them as benchmarks/limits.py counts."""
    from limits_measured import kept_matrices

    own, rows = 6, 30
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    features, labels = points(rows, torch.float32).requires_grad_(), torch.arange(10).repeat(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = wrt_loss_of_anchors(features[:own], labels[:own], features, labels)
    assert loss.requires_grad  # keeps the saved tensors alive until here
    matrices = [tensor.nbytes for tensor in kept.values() if tensor.shape == (own, rows)]
    assert max(tensor.numel() for tensor in kept.values()) == own * rows
    assert 2 * sum(matrices) == cost.pairs_bytes(own, rows, kept_matrices())
