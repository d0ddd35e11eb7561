"""Batch norms whose statistics are those of all workers' images together.

On a GPU torch's own; it refuses tensors of a CPU, so there is one for these. Every rank holds as many images.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


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
