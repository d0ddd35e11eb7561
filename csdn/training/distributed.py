"""Several workers that train one model (torch.distributed). With one process nothing here does anything.

The global batch is split by identity. Only the triplet loss compares images of different identities, so only
its features are gathered; every other loss is a mean over images, and the mean over the ranks of the ranks'
means is the mean of the batch. Batch norms are synchronised and gradients averaged, so all workers take the
step of the whole batch, and any number of workers trains the same model.
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


def rank_and_world_size() -> tuple[int, int]:
    """(rank, number of workers): (0, 1) in a plain process."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def wrap_for_ddp(model: nn.Module) -> nn.Module:
    """`model` as one of several workers trains it, with synchronised batch norms; unchanged in one process.

    It shares the tensors of `model`. Call `average_gradients` between the backward pass and the optimiser's
    step.
    """
    if rank_and_world_size()[1] == 1:
        return model
    model = synchronise_batch_norms(model)
    if next(model.parameters()).is_cpu:
        return model
    # On GPUs, DDP overlaps the gradient all-reduce with the backward pass.
    return DistributedDataParallel(
        model,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        # With it DDP keeps its buckets after the first step, so that a resumed run sums gradients in the same
        # order as an uninterrupted one.
        find_unused_parameters=True,
    )


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """Replace each parameter's gradient by its mean over the ranks; model: of `wrap_for_ddp`.

    On GPUs DDP has done so in the backward pass. On CPUs an overlapping all-reduce would compete with the
    backward pass for cores, and all ranks wait for each other at every batch norm; so there is one all-reduce
    of all gradients after the backward pass.
    """
    if rank_and_world_size()[1] == 1 or isinstance(model, DistributedDataParallel):
        return
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    together = trained[0].new_empty(sum(parameter.numel() for parameter in trained))
    parts = together.split([parameter.numel() for parameter in trained])
    for parameter, part in zip(trained, parts, strict=True):
        # With the parameter's strides (channels_last), so that the copy reads and writes memory in order.
        mean = part.as_strided(parameter.shape, parameter.stride())
        parameter.grad = torch.div(parameter.grad, rank_and_world_size()[1], out=mean)
    dist.all_reduce(together)


def all_gather_with_grad(rows: Tensor) -> Tensor:
    """The rows [n, ...] of every rank, in the order of ranks: [workers * n, ...], with gradient.

    The gradient of a rank's rows is the sum of their gradients in all ranks' losses.
    """
    if rank_and_world_size()[1] == 1:
        return rows
    return _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    """Forward: all-gather. Backward: reduce-scatter of the gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(rank_and_world_size()[1] * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own = gradient.new_empty(len(gradient) // rank_and_world_size()[1], *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own


def mean_over_ranks(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over the ranks of each scalar, without gradient."""
    if rank_and_world_size()[1] == 1:
        return dict(values)
    stacked = torch.stack([value.detach() for value in values.values()])
    dist.all_reduce(stacked)
    return dict(zip(values, stacked / rank_and_world_size()[1], strict=True))


def all_reduce_any(flag: bool) -> bool:
    """Whether the flag of any rank is true."""
    if rank_and_world_size()[1] == 1:
        return flag
    flags = torch.tensor(float(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


# Synchronised batch norms: torch's on GPUs; torch has none for CPUs, so there is one here. All ranks have the
# same number of images.


def synchronise_batch_norms(model: nn.Module) -> nn.Module:
    """Replace the batch norms of `model` by synchronised ones with the same parameters and buffers."""
    if next(model.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncedBatchNorm):
                setattr(module, name, SyncedBatchNorm.over(child))
    return model


class SyncedBatchNorm(_BatchNorm):
    """A batch norm of [n, channels, ...] with statistics over the images of all ranks in training mode."""

    @classmethod
    def over(cls, norm: _BatchNorm) -> SyncedBatchNorm:
        """One that shares the parameters and buffers of `norm`."""
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
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """The gradient with constant statistics, plus the part through the statistics of all ranks.

        Three passes of native kernels: the sums, the part through the statistics, and its sum with the rest.
        """
        x, weight, mean, variance = ctx.saved_tensors
        scale = (variance + ctx.eps).rsqrt()
        _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad_output, x, weight, mean, variance, None, None, False, ctx.eps, [False, True, True]
        )
        shared = torch.stack([grad_weight, grad_bias])
        dist.all_reduce(shared)
        shared *= -weight * scale / (x.numel() // x.shape[1] * dist.get_world_size())
        grad_x = F.batch_norm(x, mean, variance, shared[0], shared[1], False, 0.0, ctx.eps)
        channels = (-1, *[1] * (x.dim() - 2))
        return grad_x.addcmul_(grad_output, (weight * scale).view(channels)), grad_weight, grad_bias, None


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [c] over the rows of all ranks, from each rank's mean and variance.

    Sums of squares would lose digits.
    """
    # The kernel of batch norm takes a tenth of the time of var_mean; without buffers it updates nothing.
    own = torch.stack(torch.ops.aten.batch_norm_update_stats(x, None, None, 0.0))
    every = own.new_empty(dist.get_world_size() * len(own), own.shape[1])
    dist.all_gather_into_tensor(every, own)
    means, variances = every[0::2], every[1::2]
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)
