"""MobileNets for ImageNet as TensorFlow published them, batch norms folded into the convolutions.

V1: Howard et al. 2017 (arXiv 1704.04861, table 1); V2: Sandler et al. 2018 (arXiv 1801.04381, table 2). A checkpoint is
a plain dictionary of `stem`, `blocks.N.depthwise`, `.pointwise` (V1) or `.expand`, `.project` (V2), `last` (V2) and
`fc`, each with weight and bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

# V1: (channels, stride) of each block; V2: (expansion, channels, blocks, stride of the first of them).
V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class SameConv(nn.Conv2d):
    """TensorFlow's SAME padding: where it cannot be even, the extra row and column of zeros are the last ones."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, K, H, W) -> (B, K', ⌈H / stride⌉, ⌈W / stride⌉)."""
        margins = [max((-(-side // stride) - 1) * stride + kernel - side, 0)
                   for side, stride, kernel in zip(x.shape[-2:], self.stride, self.kernel_size, strict=True)]
        top, left = (margin // 2 for margin in margins)
        return super().forward(F.pad(x, (left, margins[1] - left, top, margins[0] - top)))


class Separable(nn.Module):
    """V1's block: a depthwise and a pointwise convolution, each with ReLU6."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.depthwise = SameConv(channels, channels, 3, stride, groups=channels)
        self.pointwise = nn.Conv2d(channels, out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, K, H, W) -> (B, out, H / stride, W / stride)."""
        return F.relu6(self.pointwise(F.relu6(self.depthwise(x))))


class InvertedResidual(nn.Module):
    """V2's block: widened, filtered, and projected without an activation; added to its input where shapes agree."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = nn.Conv2d(channels, wide, 1) if expansion > 1 else None
        self.depthwise = SameConv(wide, wide, 3, stride, groups=wide)
        self.project = nn.Conv2d(wide, out, 1)
        self.residual = stride == 1 and channels == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, K, H, W) -> (B, out, H / stride, W / stride)."""
        wide = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(wide)))
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """Stem, blocks, mean over the image, linear head on D numbers. last: channels of a 1 × 1 convolution after the
    blocks (V2); size: pixels of the square that it was trained on."""

    def __init__(self, stem: int, blocks: list[nn.Module], width: int, last: nn.Module | None, size: int) -> None:
        super().__init__()
        self.stem, self.blocks, self.last = SameConv(3, stem, 3, 2), nn.Sequential(*blocks), last
        self.fc = nn.Linear(width, 1000)
        self.preprocessing: dict[str, Any] = {"resize": int(size / 0.875), "crop": size, "interpolation": "bilinear",
                                              "mean": [0.5] * 3, "std": [0.5] * 3}
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> logits (B, 1000)."""
        x = self.blocks(F.relu6(self.stem(x)))
        if self.last is not None:
            x = F.relu6(self.last(x))
        return self.fc(x.mean((2, 3)))  # (B, D) -> (B, 1000)


def _v1(width: float, size: int) -> MobileNet:
    widths = [int(width * channels) for channels in (32, *(out for out, _ in V1))]
    blocks = [Separable(before, after, stride)
              for before, after, (_, stride) in zip(widths, widths[1:], V1, strict=False)]
    return MobileNet(widths[0], blocks, widths[-1], None, size)


def mobilenet_v1_025_128() -> MobileNet:
    """V1, width 0.25, 128 pixels, D = 256: 39.5 % top-1."""
    return _v1(0.25, 128)


def mobilenet_v1_050_160() -> MobileNet:
    """V1, width 0.5, 160 pixels, D = 512: 57.2 % top-1."""
    return _v1(0.5, 160)


def mobilenet_v1_075_192() -> MobileNet:
    """V1, width 0.75, 192 pixels, D = 768: 66.1 % top-1."""
    return _v1(0.75, 192)


def mobilenet_v2_100_224() -> MobileNet:
    """V2, width 1, 224 pixels, D = 1280: 70.8 % top-1."""
    channels, blocks = 32, []
    for expansion, out, count, first_stride in V2:
        for place in range(count):
            blocks.append(InvertedResidual(channels, out, first_stride if place == 0 else 1, expansion))
            channels = out
    return MobileNet(32, blocks, 1280, nn.Conv2d(channels, 1280, 1), 224)
