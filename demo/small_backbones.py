"""Three small nets for 64 x 64 images; their widths make them of clearly different strength.

Each ends in global pooling -> flatten -> `fc`, so its representation is the D-wide input of `fc`. The pooling takes
the maximum: the object fills a part of the image, and with a mean the nets learn far more slowly. They
take no arguments, as every backbone named `path/to/file.py:function` does.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

CLASSES = 8


def shapes_small() -> nn.Module:
    """D = 32."""
    return _net(8, 16, 24, 32)


def shapes_medium() -> nn.Module:
    """D = 64."""
    return _net(12, 24, 48, 64)


def shapes_large() -> nn.Module:
    """D = 128."""
    return _net(16, 48, 96, 128)


def _net(*widths: int) -> nn.Sequential:
    layers, channels = [], 3
    for depth, width in enumerate(widths, 1):  # (B, width, 32, 32), then 16, 8, 4
        kernel = 5 if depth == 1 else 3
        layers.append((f"block{depth}", nn.Sequential(
            nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(width), nn.ReLU(inplace=True))))
        channels = width
    layers += [("pool", nn.AdaptiveMaxPool2d(1)), ("flatten", nn.Flatten()),  # (B, D)
               ("fc", nn.Linear(channels, CLASSES))]  # (B, C)
    return nn.Sequential(OrderedDict(layers))
