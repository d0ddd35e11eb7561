"""Batch norms whose statistics are those of all workers' images together.

On a GPU torch's own; it refuses tensors of a CPU, so there is one for these. Every rank holds as many images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


def synchronised(model: nn.Module) -> nn.Module:
    """`model` with synchronised batch norms in place of its own, over the same parameters and buffers."""
    if next(model.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncedBatchNorm):
                setattr(module, name, SyncedBatchNorm.over(child))
    return model


class SyncedBatchNorm(_BatchNorm):
    """A batch norm of any rank [n, channels, ...], in training mode over the images of all ranks."""

    @classmethod
    def over(cls, norm: _BatchNorm) -> SyncedBatchNorm:
        """One that shares `norm`'s parameters and buffers."""
        synced = cls(norm.num_features, norm.eps, norm.momentum)
        synced._parameters, synced._buffers = norm._parameters, norm._buffers
        return synced.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        output, mean, variance = _Normalise.apply(input, self.weight, self.bias, self.eps)
        count = input.numel() // input.shape[1] * dist.get_world_size()
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return output


class _Normalise(torch.autograd.Function):
    """Input [n, c, ...] -> (normalised input, mean [c], biased variance [c]) over all ranks' rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        mean, variance = _statistics(x)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    def backward(ctx: Any, of_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """The input's gradient were the statistics constants, less what they owe to the input.

        Native passes: one that adds up, one for what is owed, one that adds the output's gradient to it.
        """
        x, weight, mean, variance = ctx.saved_tensors
        scale = (variance + ctx.eps).rsqrt()
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            of_output, x, weight, mean, variance, None, None, False, ctx.eps, [False, True, True]
        )
        shared = torch.stack([of_weight, of_bias])
        dist.all_reduce(shared)
        shared *= -weight * scale / (x.numel() // x.shape[1] * dist.get_world_size())
        of_x = F.batch_norm(x, mean, variance, shared[0], shared[1], False, 0.0, ctx.eps)
        channels = (-1, *[1] * (x.dim() - 2))
        return of_x.addcmul_(of_output, (weight * scale).view(channels)), of_weight, of_bias, None


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [c] over the rows of all ranks; from each rank's own, so that no digits go."""
    # A batch norm's own kernel, in a tenth of var_mean's time; without buffers it updates nothing.
    own = torch.stack(torch.ops.aten.batch_norm_update_stats(x, None, None, 0.0))
    both = own.new_empty(dist.get_world_size() * len(own), own.shape[1])
    dist.all_gather_into_tensor(both, own)
    means, variances = both[0::2], both[1::2]
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


# What the workers of a training share: nothing here does anything where there is one process.
#
# The global batch is split by person. Of the losses only the triplet sees other people's images, so only its
# features are gathered; every other loss is a mean over images, and the mean over ranks of the ranks' means.
# With gradients averaged over the ranks all workers take the step of the whole batch.


def rank_and_world_size() -> tuple[int, int]:
    """(rank, number of workers): (0, 1) in a plain process."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def wrap_for_ddp(model: nn.Module) -> nn.Module:
    """`model` as one of several workers trains it, with synchronised batch norms; itself where it is alone.

    Its tensors are `model`'s. Between backward pass and optimiser's step stands `average_gradients`.
    """
    if rank_and_world_size()[1] == 1:
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
    if rank_and_world_size()[1] == 1 or isinstance(model, DistributedDataParallel):
        return
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    together = trained[0].new_empty(sum(parameter.numel() for parameter in trained))
    parts = together.split([parameter.numel() for parameter in trained])
    for parameter, part in zip(trained, parts, strict=True):
        # In the order of the parameter's memory, which is not that of its shape and costs no jumps.
        mean = part.as_strided(parameter.shape, parameter.stride())
        parameter.grad = torch.div(parameter.grad, rank_and_world_size()[1], out=mean)
    dist.all_reduce(together)


def all_gather_with_grad(rows: Tensor) -> Tensor:
    """The rows [n, ...] of every rank, in the order of ranks: [workers * n, ...], with gradient.

    The gradient of a rank's rows is the sum of what all ranks' losses say of them.
    """
    if rank_and_world_size()[1] == 1:
        return rows
    return _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    """All ranks' rows; backward, the sum over the ranks of the gradient of one's own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(rank_and_world_size()[1] * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, of_all: Tensor) -> Tensor:
        own = of_all.new_empty(len(of_all) // rank_and_world_size()[1], *of_all.shape[1:])
        dist.reduce_scatter_tensor(own, of_all.contiguous())
        return own


def mean_over_ranks(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scalars, each the mean over the ranks, without gradient."""
    if rank_and_world_size()[1] == 1:
        return dict(values)
    both = torch.stack([value.detach() for value in values.values()])
    dist.all_reduce(both)
    return dict(zip(values, both / rank_and_world_size()[1], strict=True))


def all_reduce_any(flag: bool) -> bool:
    """Whether the flag of any rank is true."""
    if rank_and_world_size()[1] == 1:
        return flag
    flags = torch.tensor(float(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)
