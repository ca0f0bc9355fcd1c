"""A small convolutional image tower, registered with timm, so that an open_clip config can name it.

    "vision_cfg": {"image_size": 64, "timm_model_name": "iis_small_convnet", "timm_pool": "max", "timm_proj": ""}

The small towers that timm brings shrink 64 pixels to 2 x 2 before they pool; this one takes the maximum over 4 x 4. On
`shapes`, after 16 epochs of `demo/train_tiny_clip.py` (seed 0, one run each), 18 of 22 words reach AUROC 0.93 with it
and 15 with `test_byobnet`, whose epochs take as long.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from torch import nn

WIDTHS = (16, 48, 96, 128)


class SmallConvNet(nn.Sequential):
    """(B, 3, H, W) -> (B, num_classes): four strided convolutions, the maximum over space, a linear layer."""

    def __init__(self, num_classes: int) -> None:
        layers, channels = [], 3
        for depth, width in enumerate(WIDTHS):  # (B, width, H / 2, W / 2), … (B, 128, H / 16, W / 16)
            kernel = 3 if depth else 5
            layers += [nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2, bias=False),
                       nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        super().__init__(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


@register_model
def iis_small_convnet(pretrained: bool = False, num_classes: int = 1000, **_: Any) -> SmallConvNet:
    """What `timm.create_model("iis_small_convnet")` builds; there are no weights to download."""
    return SmallConvNet(num_classes)
