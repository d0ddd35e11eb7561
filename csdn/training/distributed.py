"""Several workers that train one model (torch.distributed). With one process nothing here does anything.

All workers have equally many images of the global batch, and losses are means over images, so the mean over
the ranks of the ranks' means is the mean of the batch. Features are gathered for the losses that compare
images of several workers (csdn.losses). Batch norms are synchronised and gradients averaged, so all workers
take the step of the whole batch, and any number of workers trains the same model.

Only `all_reduce_any` makes the host wait for a GPU, and it is for steps that are logged.
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
        # order as an uninterrupted one. By default and with static_graph, DDP would build others then.
        find_unused_parameters=True,
    )


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """Replace each parameter's gradient by its mean over the ranks; model: of `wrap_for_ddp`.

    On GPUs DDP has done so in the backward pass. On CPUs there is nothing to overlap: all ranks wait for each
    other at every batch norm, and an all-reduce beside the backward pass would compete with it for cores.
    """
    if rank_and_world_size()[1] == 1 or not next(model.parameters()).is_cpu:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    together /= rank_and_world_size()[1]
    parts = together.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))  # in the gradient's own layout (channels_last)


def all_gather_with_grad(rows: Tensor) -> Tensor:
    """The rows [n, ...] of every rank, in the order of ranks: [workers * n, ...], with gradient.

    The gradient of a rank's rows is the sum of their gradients in all ranks' losses.
    """
    if rank_and_world_size()[1] == 1:
        return rows
    return _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    """Forward: all-gather. Backward: reduce-scatter of the gradients.

    torch.distributed.nn.functional.all_gather does the same, but is deprecated since torch 2.15; what is
    recommended instead is a private module.
    """

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


# Synchronised batch norms. In torch's a rank may have no images: to find out, the host waits for the GPU at
# each norm, 60 times a step of RN50; and torch has none for CPUs. Here all ranks have the same number.


def synchronise_batch_norms(model: nn.Module) -> nn.Module:
    """Replace the batch norms of `model` by synchronised ones with the same parameters and buffers."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncedBatchNorm):
                setattr(module, name, SyncedBatchNorm.over(child))
    return model


class SyncedBatchNorm(_BatchNorm):
    """A batch norm of [n, channels, ...] with statistics over the images of all ranks in training mode."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

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
        mean, variance = _Statistics.apply(input, self.running_mean)
        constant_mean, constant_variance = mean.detach(), variance.detach()
        count = input.numel() // input.shape[1] * dist.get_world_size()
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(constant_mean, self.momentum)
            self.running_var.lerp_(constant_variance * (count / (count - 1)), self.momentum)
        # The kernel of batch norm takes the statistics as constants. The factor 1 in the weight and the
        # summand 0 in the bias carry the gradient to them.
        scale = (variance + self.eps).rsqrt()
        weight = self.weight * (scale / scale.detach())
        bias = self.bias + weight * scale.detach() * (constant_mean - mean)
        return F.batch_norm(input, constant_mean, constant_variance, weight, bias, False, 0.0, self.eps)


class _Statistics(torch.autograd.Function):
    """Input [n, c, ...] -> mean and biased variance [c] over the rows of all ranks; `like`: a tensor [c]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        # On a CPU the kernel of batch norm takes a tenth of the time of var_mean. With this momentum the
        # running statistics are those of the batch. Sums of squares would lose digits.
        own = torch.stack([like, like])
        F.batch_norm(x, own[0], own[1], training=True, momentum=1.0)
        count = x.numel() // x.shape[1]
        own[1] *= (count - 1) / count
        every = own.new_empty(dist.get_world_size() * 2, own.shape[1])
        dist.all_gather_into_tensor(every, own)
        means, variances = every[0::2], every[1::2]
        mean = means.mean(0)
        ctx.save_for_backward(x, mean)
        return mean, variances.mean(0) + (means - mean).square().mean(0)

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        grads = torch.stack([grad_mean, grad_variance])
        dist.all_reduce(grads)
        by_mean, by_variance = grads / (x.numel() // x.shape[1] * dist.get_world_size())
        channels = (-1, *[1] * (x.dim() - 2))
        offset, factor = by_mean - 2 * by_variance * mean, 2 * by_variance
        return torch.addcmul(offset.view(channels), x, factor.view(channels)).to(x.dtype), None
