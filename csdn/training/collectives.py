"""What the workers of a training share: nothing here does anything where there is one process.

The global batch is split by person. Of the losses only the triplet sees other people's images, so only its
features are gathered; every other loss is a mean over images, and the mean over ranks of the ranks' means.
With gradients averaged over the ranks all workers take the step of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from csdn.training.batch_norm import synchronised


def world() -> tuple[int, int]:
    """(rank, number of workers): (0, 1) in a plain process."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def distributed(model: nn.Module) -> nn.Module:
    """`model` as one of several workers trains it, with synchronised batch norms; itself where it is alone.

    Its tensors are `model`'s. Between backward pass and optimiser's step stands `average_gradients`.
    """
    if world()[1] == 1:
        return model
    model = synchronised(model)
    if next(model.parameters()).is_cpu:
        return model
    # Beside a GPU's work gradients travel for nothing.
    return DistributedDataParallel(
        model,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        # So buckets stay as they are after the first step, and a resumed run adds up in the order of one that
        # was never interrupted.
        find_unused_parameters=True,
    )


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """Give each parameter of a `distributed` model the mean over the ranks of its gradient.

    On a GPU the backward pass has done so. On a CPU gradients that travel beside it would take the core of
    the work, and with it the time of all ranks, who meet at the next batch norm: there they travel in one
    piece when the work is done.
    """
    if world()[1] == 1 or isinstance(model, DistributedDataParallel):
        return
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    together = trained[0].new_empty(sum(parameter.numel() for parameter in trained))
    parts = together.split([parameter.numel() for parameter in trained])
    for parameter, part in zip(trained, parts, strict=True):
        # In the order of the parameter's memory, which is not that of its shape and costs no jumps.
        mean = part.as_strided(parameter.shape, parameter.stride())
        parameter.grad = torch.div(parameter.grad, world()[1], out=mean)
    dist.all_reduce(together)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows [n, ...] of every rank, in the order of ranks: [workers * n, ...], with gradient.

    The gradient of a rank's rows is the sum of what all ranks' losses say of them.
    """
    if world()[1] == 1:
        return rows
    return _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    """All ranks' rows; backward, the sum over the ranks of the gradient of one's own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(world()[1] * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, of_all: Tensor) -> Tensor:
        own = of_all.new_empty(len(of_all) // world()[1], *of_all.shape[1:])
        dist.reduce_scatter_tensor(own, of_all.contiguous())
        return own


def mean_over_ranks(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scalars, each the mean over the ranks, without gradient."""
    if world()[1] == 1:
        return dict(values)
    both = torch.stack([value.detach() for value in values.values()])
    dist.all_reduce(both)
    return dict(zip(values, both / world()[1], strict=True))


def any_rank(flag: bool) -> bool:
    """Whether the flag of any rank is true."""
    if world()[1] == 1:
        return flag
    flags = torch.tensor(float(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)
