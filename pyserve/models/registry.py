"""The registry of architectures: `@register` one function, and API, command line and tests know it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from pyserve.errors import InvalidArgumentError

Channels = tuple[float, float, float]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)

_ARCHITECTURES: dict[str, Architecture] = {}


@dataclass(frozen=True)
class Architecture:
    """A network that can be built by name.

    Attributes:
        name: as specs name it.
        image_size: side of the square it is made for, pixels.
        mean, std: of the RGB channels (0…1) that its input is normalised with.
        build: number of classes → network.
        least_image_size: of the sides that it can take, pixels; 1: a spec's own bound is the only one.
        imagenet: the member of torchvision's weights enum of this network ("IMAGENET1K_V1"); None: there is none.
    """

    name: str
    image_size: int
    mean: Channels
    std: Channels
    build: Callable[[int], nn.Module]
    least_image_size: int = 1
    imagenet: str | None = None


@runtime_checkable
class BeginsWithPictures(Protocol):
    """A network some of whose first weights are computed from the training pictures instead of drawn."""

    def begin_with(self, pictures: Tensor) -> None:
        """Set those weights; pictures float32 [N, 3, H, W] as the network sees them in training."""


@runtime_checkable
class HasRateFactors(Protocol):
    """A network some of whose parameters learn at a rate of their own."""

    def rate_factors(self) -> dict[str, float]:
        """Name of a parameter → factor on its learning rate."""


def register(
    name: str,
    *,
    image_size: int,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
    least_image_size: int = 1,
    imagenet: str | None = None,
) -> Callable[[Callable[[int], nn.Module]], Callable[[int], nn.Module]]:
    """Register the decorated function, number of classes → network, under a name; arguments as in Architecture."""

    def add(build: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
        if name in _ARCHITECTURES:
            raise InvalidArgumentError.field("register.name", name, "a name that is not registered yet")
        _ARCHITECTURES[name] = Architecture(name, image_size, mean, std, build, least_image_size, imagenet)
        return build

    return add


def architectures() -> dict[str, Architecture]:
    """All architectures by name."""
    return dict(_ARCHITECTURES)


def get_architecture(name: str) -> Architecture:
    """The architecture of a name; InvalidArgumentError lists all where there is none."""
    if name not in _ARCHITECTURES:
        raise InvalidArgumentError.field("architecture", name, "one of " + ", ".join(sorted(_ARCHITECTURES)))
    return _ARCHITECTURES[name]


def create_model(name: str, num_classes: int) -> nn.Module:
    """A new network with random weights (from torch's generator: seed it with `torch.manual_seed`).

    It is a plain torchvision-like module in training mode; `model.architecture` is its name.

    Raises:
        InvalidArgumentError: an unknown name, or fewer than one class.
    """
    architecture = get_architecture(name)
    if num_classes < 1:
        raise InvalidArgumentError.field("num_classes", num_classes, "≥ 1")
    model = architecture.build(num_classes)
    model.architecture = name  # type: ignore[assignment]  # `load_weights` asks whose ImageNet weights to take
    return model
