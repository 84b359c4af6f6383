"""A small network of our own for pictures of 8 to 64 pixels: a narrow ResNet-9.

The layout is that of David Page's "How to train your ResNet" (2018): few convolutions, each followed by BatchNorm
and ReLU, pooling between them, two residual blocks. It is a quarter to an eighth as wide, so that two CPU cores
train it on CIFAR-10 in minutes: 0.94 M parameters, 57 M multiply-adds for a picture of 32 pixels.
"""

from __future__ import annotations

from torch import Tensor, nn

_WIDTHS = (32, 48, 96, 192)


class SmallNet(nn.Module):
    """Pictures [N, 3, H, W] with H, W ≥ 8 to logits [N, num_classes]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        stem, first, second, third = _WIDTHS
        self.stem = _conv_bn_relu(3, stem)
        self.stage1 = nn.Sequential(_conv_bn_relu(stem, first), nn.MaxPool2d(2), Residual(first))
        self.stage2 = nn.Sequential(_conv_bn_relu(first, second), nn.MaxPool2d(2))
        self.stage3 = nn.Sequential(_conv_bn_relu(second, third), nn.MaxPool2d(2), Residual(third))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        y: Tensor = self.fc(self.pool(x).flatten(1))
        return y


class Residual(nn.Module):
    """relu(x + two convolutions of x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv_bn_relu(channels, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The sizes of x."""
        y: Tensor = self.relu(self.bn(self.conv(self.first(x))) + x)
        return y


def _conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())
