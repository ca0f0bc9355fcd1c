"""ResNets for 32-pixel images (He et al. 2016, §4.2): small real models that a laptop can run."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

DEPTHS = (20, 32, 44, 56, 110)
NAMES = tuple(f"resnet{depth}" for depth in DEPTHS)


class Block(nn.Module):
    """Two 3 x 3 convolutions; the shortcut has no parameters (option A: every second pixel, zeros for new channels)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.new_channels = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        before = self.new_channels // 2
        shortcut = x[:, :, ::self.stride, ::self.stride]
        return F.relu(out + F.pad(shortcut, (0, 0, 0, 0, before, self.new_channels - before)))


class CifarResNet(nn.Module):
    """depth = 6n + 2: a convolution, three stages of n blocks with 16, 32 and 64 channels, a linear head on D = 64."""

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> logits (B, C); any image size works, 32 x 32 is what the checkpoints saw."""
        x = F.relu(self.bn1(self.conv1(x)))  # (B, 16, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (B, 64, H / 4, W / 4)
        return self.linear(self.avgpool(x).flatten(1))  # (B, C)


def cifar_resnet(name: str, num_classes: int = 10) -> CifarResNet:
    """The network called `name`, one of `NAMES`, with random weights."""
    return CifarResNet(int(name.removeprefix("resnet")), num_classes)
