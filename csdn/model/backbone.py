"""CLIP's residual network as CSDN uses it: a stem for each modality, and layer4 without its stride.

Names inside a block are CLIP's, so that its weights load as they are. At the end: batch norms fused into the
convolutions, for networks that only compute embeddings.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

if TYPE_CHECKING:
    from csdn.model.network import CSDN


EXPANSION = 4
STRIDES = (1, 2, 2, 1)  # of layer1..4; CLIP's layer4 has 2, re-identification keeps the larger map


class Stem(nn.Module):
    """Images [n, 3, H, W] -> [n, width, H/4, W/4].

    relu_after_each: ReLU after every batch norm, as in CLIP; the published CSDN has it after the third only.
    """

    def __init__(self, width: int, relu_after_each: bool) -> None:
        super().__init__()
        self.relu_after_each = relu_after_each
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        first = self.bn1(self.conv1(images))
        second = self.bn2(self.conv2(self._between(first)))
        third = self.bn3(self.conv3(self._between(second)))
        return F.avg_pool2d(F.relu(third, inplace=True), 2)

    def _between(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=True) if self.relu_after_each else x


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3, 1x1 and a shortcut; a stride is an average pool on both paths, as in CLIP."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, planes * EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * EXPANSION)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or channels != planes * EXPANSION:
            shortcut = nn.Conv2d(channels, planes * EXPANSION, 1, bias=False)
            self.downsample = nn.Sequential(
                OrderedDict([("-1", self.pool), ("0", shortcut), ("1", nn.BatchNorm2d(planes * EXPANSION))])
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.pool(F.relu(self.bn2(self.conv2(out)), inplace=True))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.downsample(x), inplace=True)


def residual_layers(depths: Sequence[int], width: int) -> nn.Sequential:
    """layer1..layer4: [n, width, H/4, W/4] -> [n, 32 width, H/16, W/16]."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = width
    for number, (depth, stride) in enumerate(zip(depths, STRIDES, strict=True)):
        planes = width * 2**number
        blocks = [Bottleneck(channels, planes, stride)]
        channels = planes * EXPANSION
        blocks += [Bottleneck(channels, planes, 1) for _ in range(depth - 1)]
        layers[f"layer{number + 1}"] = nn.Sequential(*blocks)
    return nn.Sequential(layers)


# Batch norms with running statistics, fused into the convolutions before them: same values, less work.


_PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1"))  # "0", "1": of a shortcut


def fuse_batch_norms(model: CSDN) -> CSDN:
    """A copy of `model` for `embed` and `image_embeddings` only, in evaluation mode.

    Each convolution includes the scale and shift of the batch norm after it. Features differ from the
    original's by rounding (1e-5 relative in float32). The copy cannot be trained or saved.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(copied.modules()):
        if isinstance(module, Stem | Bottleneck):
            _fuse(module)
        if isinstance(module, Bottleneck):
            _fuse(module.downsample)
    return copied.channels_last()


def _fuse(module: nn.Module) -> None:
    for conv, norm in _PAIRS:
        if hasattr(module, norm):
            with torch.no_grad():
                fused = fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
            setattr(module, conv, fused)
            setattr(module, norm, nn.Identity())
