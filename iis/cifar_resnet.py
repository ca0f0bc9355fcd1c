"""ResNets for 32-pixel images (He et al. 2016, §4.2): small real models that a laptop can run."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

DEPTHS = (20, 32, 44, 56, 110)
NAMES = tuple(f"resnet{depth}" for depth in DEPTHS)


class Shortcut(nn.Module):
    """Into a stage of twice the channels, without parameters (option A)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, K, H, W) -> (B, 2K, H / 2, W / 2): every second pixel; half of the new, zero channels on either side."""
        half = x.shape[1] // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))


class CifarResNet(nn.Module):
    """depth = 6n + 2: a convolution, three stages of n blocks with 16, 32 and 64 channels, a linear head on D = 64."""

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        more = (depth - 2) // 6 - 1
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16) for _ in range(more + 1)))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2, Shortcut()), *(BasicBlock(32, 32) for _ in range(more)))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2, Shortcut()), *(BasicBlock(64, 64) for _ in range(more)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> logits (B, C); any image size works, 32 x 32 is what the checkpoints saw."""
        x = F.relu(self.bn1(self.conv1(x)))  # (B, 16, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (B, 64, H / 4, W / 4)
        return self.linear(self.avgpool(x).flatten(1))  # (B, C)


def cifar_resnet(name: str, num_classes: int = 10) -> CifarResNet:
    """The network called `name`, one of `NAMES`, with random weights."""
    return CifarResNet(int(name.removeprefix("resnet")), num_classes)
