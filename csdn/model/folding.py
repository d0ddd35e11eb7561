"""Batch norms with running statistics, folded into the convolutions before them: same values, less work.

For a network that only embeds images: it has no batch norms left to train.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from csdn.model.network import CSDN
from csdn.model.resnet import Bottleneck, Stem

_PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1"))  # the last: a shortcut's


def folded(model: CSDN) -> CSDN:
    """A copy of `model` for `embed` and `image_embeddings` alone, in evaluation mode.

    Each convolution carries the scale and shift of the batch norm behind it. Features differ from the
    original's by rounding (1e-5 relative in float32). The copy cannot be trained or saved.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(copied.modules()):
        if isinstance(module, Stem | Bottleneck):
            _fold(module)
        if isinstance(module, Bottleneck):
            _fold(module.downsample)
    return copied.channels_last()


def _fold(module: nn.Module) -> None:
    for convolution, norm in _PAIRS:
        if hasattr(module, norm):
            with torch.no_grad():
                fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
            setattr(module, convolution, fused)
            setattr(module, norm, nn.Identity())
