"""The ResNets for CIFAR-10 of He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2.

6n+2 layers on pictures of 32 pixels, shortcuts without parameters (option A). Names of parameters as in the
published weights of akamaster/pytorch_resnet_cifar10.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class CifarResNet(nn.Module):
    """Pictures [N, 3, H, W] to logits [N, num_classes]; three stages of `blocks` blocks, 16, 32, 64 channels."""

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        y: Tensor = self.linear(self.pool(x).flatten(1))
        return y


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        changes = stride != 1 or in_planes != planes
        self.shortcut = PadShortcut(stride, (planes - in_planes) // 2) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, planes, H/stride, W/stride]."""
        shortcut = self.shortcut(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        z: Tensor = self.relu(y + shortcut)
        return z


class PadShortcut(nn.Module):
    """Option A: every stride-th pixel, with zero channels added on both sides."""

    def __init__(self, stride: int, channels: int) -> None:
        super().__init__()
        self.stride, self.channels = stride, channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C + 2·channels, ⌈H/stride⌉, ⌈W/stride⌉]."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, [0, 0, 0, 0, self.channels, self.channels])


def _stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_planes, planes, stride)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1)))
