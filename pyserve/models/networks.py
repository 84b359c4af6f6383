"""The architectures: one decorated function each."""

from __future__ import annotations

from typing import cast

from torch import nn

from pyserve._torchvision import torchvision
from pyserve.models.cifar_resnet import CifarResNet
from pyserve.models.registry import register
from pyserve.models.smallnet import SmallNet
from pyserve.models.whitened import WhitenedNet


@register("smallnet", image_size=32)
def smallnet(num_classes: int) -> nn.Module:
    """Our own, for pictures of 8 to 64 pixels."""
    return SmallNet(num_classes)


@register("whitenednet", image_size=32, least_image_size=9)
def whitenednet(num_classes: int) -> nn.Module:
    """Our own, for the best accuracy on pictures of 16 to 64 pixels in minutes."""
    return WhitenedNet(num_classes)


@register("resnet20", image_size=32)
def resnet20(num_classes: int) -> nn.Module:
    """He et al. 2015, for CIFAR-10."""
    return CifarResNet(3, num_classes)


@register("resnet56", image_size=32)
def resnet56(num_classes: int) -> nn.Module:
    """He et al. 2015, for CIFAR-10."""
    return CifarResNet(9, num_classes)


@register("resnet18", image_size=224, imagenet="IMAGENET1K_V1")
def resnet18(num_classes: int) -> nn.Module:
    """He et al. 2015."""
    return _of_torchvision("resnet18", num_classes)


@register("resnet34", image_size=224, imagenet="IMAGENET1K_V1")
def resnet34(num_classes: int) -> nn.Module:
    """He et al. 2015."""
    return _of_torchvision("resnet34", num_classes)


@register("resnet50", image_size=224, imagenet="IMAGENET1K_V2")
def resnet50(num_classes: int) -> nn.Module:
    """He et al. 2015, stride on the 3×3 convolution."""
    return _of_torchvision("resnet50", num_classes)


@register("vgg16", image_size=224, least_image_size=32, imagenet="IMAGENET1K_V1")
def vgg16(num_classes: int) -> nn.Module:
    """Simonyan & Zisserman 2014, configuration D."""
    return _of_torchvision("vgg16", num_classes)


@register("vgg16_bn", image_size=224, least_image_size=32, imagenet="IMAGENET1K_V1")
def vgg16_bn(num_classes: int) -> nn.Module:
    """Simonyan & Zisserman 2014, configuration D, with BatchNorm."""
    return _of_torchvision("vgg16_bn", num_classes)


@register("mobilenet_v2", image_size=224, imagenet="IMAGENET1K_V2")
def mobilenet_v2(num_classes: int) -> nn.Module:
    """Sandler et al. 2018."""
    return _of_torchvision("mobilenet_v2", num_classes)


def _of_torchvision(name: str, num_classes: int) -> nn.Module:
    return cast("nn.Module", getattr(torchvision().models, name)(weights=None, num_classes=num_classes))
