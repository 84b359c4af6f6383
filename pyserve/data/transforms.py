"""From presized squares to a network's input: views for evaluation, augmentations of whole batches on a device.

Augmentations draw what is random for each picture from a generator on the CPU, so that a seed means the same
pictures on every device and with every number of threads. torchvision's v2 operators do what is the same for all
pictures of a batch; what differs from picture to picture they do for single pictures only, so one affine sampling
grid for the batch does it here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from pyserve._torchvision import torchvision
from pyserve.errors import InvalidArgumentError

_MARGIN = 8 / 7  # presize of a network's size, as 256 for 224: room for crops of nearly full resolution
_AREA = (0.35, 1.0)  # of a random crop, as a fraction of the square
_ASPECT = (3 / 4, 4 / 3)  # width to height of a random crop
_ROTATION_DEG = 10.0  # either way
_COLOUR = 0.3  # brightness, contrast, saturation: a factor within 1 ± this
MAX_SHIFT = 1 / 8  # of a picture's side: the 4 pixels of 32 that are usual for CIFAR

_TTA_SHIFT = 1 / 32  # of a view for prediction of a picture without a margin: well within what training shifts by


@dataclass(frozen=True)
class _Draw:
    """What is random in the views of a batch, and within which bounds; see `augment`."""

    generator: torch.Generator
    max_shift: float
    mirrored: torch.Tensor | None

    def flips(self, count: int) -> torch.Tensor:
        """Which pictures are mirrored, bool [N]: those that are told, or else half of them."""
        if self.mirrored is not None:
            return self.mirrored
        return torch.rand(count, generator=self.generator) < 0.5


# uint8 [N, 3, presize, presize], size, what to draw → float32 [N, 3, size, size] in 0…1, on that device
Augmentation = Callable[[torch.Tensor, int, _Draw], torch.Tensor]


@dataclass(frozen=True)
class _Registered:
    function: Augmentation
    margin: float


AUGMENTATIONS: dict[str, _Registered] = {}


def _augmentation(name: str, margin: float = 1.0) -> Callable[[Augmentation], Augmentation]:
    """Register an augmentation; `margin` is the presize that it wants, as a multiple of the network's size."""

    def register(function: Augmentation) -> Augmentation:
        AUGMENTATIONS[name] = _Registered(function, margin)
        return function

    return register


def presize_for(image_size: int, augment: str) -> int:
    """Side at which pictures are decoded for a network of `image_size` and an augmentation, pixels."""
    return round(image_size * _registered(augment).margin)


def augment(
    name: str,
    images: torch.Tensor,
    image_size: int,
    generator: torch.Generator,
    *,
    max_shift: float = MAX_SHIFT,
    mirrored: torch.Tensor | None = None,
) -> torch.Tensor:
    """An augmented view of each picture, by the augmentation's name.

    Args:
        name: "none", "flip", "crop", "standard" or "strong".
        images: uint8 [N, 3, presize, presize].
        image_size: side of the result, at most `presize`.
        generator: on the CPU; the only source of randomness.
        max_shift: of "crop", a fraction of `image_size`; it shifts by a pixel at least.
        mirrored: which pictures are mirrored where the augmentation mirrors any, bool [N] on the CPU; None: half
            of them, drawn anew.

    Returns:
        float32 [N, 3, image_size, image_size] in 0…1, on the device of `images`.
    """
    return _registered(name).function(images, image_size, _Draw(generator, max_shift, mirrored))


def normalize(view: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(view − mean) / std of each RGB channel; float [N, 3, H, W]."""
    shift, scale = _channels(tuple(mean), tuple(std), view.device)
    return (view - shift).div_(scale)


def shrunk(images: torch.Tensor, side: int) -> torch.Tensor:
    """Squares of fewer pixels, antialiased: uint8 [N, 3, side, side]; as they are where `side` is no less."""
    if side >= images.shape[-1]:
        return images
    smaller: torch.Tensor = _v2().resize(images, [side, side], antialias=True)
    return smaller


def central(batch: torch.Tensor, image_size: int) -> torch.Tensor:
    """The central squares [N, 3, image_size, image_size] of pictures: a view.

    Raises:
        InvalidArgumentError: the pictures are smaller than that.
    """
    if batch.shape[-1] < image_size or batch.shape[-2] < image_size:
        wanted = f"pictures of at least {image_size} × {image_size}"
        raise InvalidArgumentError.field("images", list(batch.shape), wanted)
    square: torch.Tensor = _v2().center_crop(batch, [image_size, image_size])
    return square


def evaluation_view(batch: torch.Tensor, image_size: int) -> torch.Tensor:
    """The central square as it is measured and served.

    Args:
        batch: uint8 0…255 or float 0…1, [N, 3, presize, presize].
        image_size: side of the result, at most `presize`.

    Returns:
        float32 [N, 3, image_size, image_size] in 0…1.

    Raises:
        InvalidArgumentError: the pictures are smaller than that.
    """
    return _to_float(central(batch, image_size))


def tta_views(batch: torch.Tensor, image_size: int) -> list[torch.Tensor]:
    """Test-time augmentation: the evaluation view, and four that are shifted towards the corners, two mirrored.

    Fixed, so that an answer can be repeated. Pictures without a margin are shifted by a 32nd, and what comes in is
    mirrored at the edge: scaled up instead, small ones look like nothing that a network has learnt.

    Args:
        batch, image_size: as for `evaluation_view`.

    Returns:
        Five times what `evaluation_view` returns.
    """
    views = [evaluation_view(batch, image_size)]
    frame = _to_float(central(batch, min(batch.shape[-1], round(image_size * _MARGIN))))
    if frame.shape[-1] - image_size < 2:
        padding = max(round(image_size * _TTA_SHIFT), 1)
        frame = functional.pad(frame, (padding,) * 4, mode="reflect")
    far = frame.shape[-1] - image_size
    for top, left, mirrored in ((0, 0, False), (0, far, True), (far, 0, True), (far, far, False)):
        view = frame[..., top : top + image_size, left : left + image_size]
        views.append(_v2().horizontal_flip(view) if mirrored else view)
    return views


@_augmentation("none")
def _none(images: torch.Tensor, size: int, draw: _Draw) -> torch.Tensor:
    return evaluation_view(images, size)


@_augmentation("flip")
def _flip(images: torch.Tensor, size: int, draw: _Draw) -> torch.Tensor:
    """Half of the pictures mirrored."""
    mirrored = _moved(draw.flips(len(images)), images.device)
    square = central(images, size)
    return _to_float(torch.where(mirrored[:, None, None, None], _v2().horizontal_flip(square), square))


@_augmentation("crop")
def _crop(images: torch.Tensor, size: int, draw: _Draw) -> torch.Tensor:
    """Shifted by up to `max_shift` each way, what comes in mirrored at the edge; and half of them mirrored."""
    padding = max(round(size * draw.max_shift), 1)
    shift = torch.randint(-padding, padding + 1, (len(images), 2), generator=draw.generator)
    mirrored = draw.flips(len(images))
    position = torch.arange(size)
    columns = torch.where(mirrored[:, None], position.flip(0), position) + shift[:, :1]
    square = central(images, size)
    rows = _moved(_reflected(position + shift[:, 1:], size), images.device)
    columns = _moved(_reflected(columns, size), images.device)
    shape = square.shape
    taken = square.gather(2, rows[:, None, :, None].expand(shape))
    return _to_float(taken.gather(3, columns[:, None, None, :].expand(shape)))


@_augmentation("standard", _MARGIN)
def _standard(images: torch.Tensor, size: int, draw: _Draw) -> torch.Tensor:
    """Random resized crop, and half of them mirrored."""
    return _sampled(images, _crop_matrices(len(images), draw), size)


@_augmentation("strong", _MARGIN)
def _strong(images: torch.Tensor, size: int, draw: _Draw) -> torch.Tensor:
    """As "standard", and rotated, and another brightness, contrast and saturation."""
    matrices = _crop_matrices(len(images), draw)
    angle = torch.empty(len(images)).uniform_(-_ROTATION_DEG, _ROTATION_DEG, generator=draw.generator)
    factors = torch.empty(3, len(images), 1, 1, 1).uniform_(1 - _COLOUR, 1 + _COLOUR, generator=draw.generator)
    view = _sampled(images, _rotated(matrices, torch.deg2rad(angle)), size)
    return _coloured(view, _moved(factors, images.device))


def _crop_matrices(count: int, draw: _Draw) -> torch.Tensor:
    """Affine matrices [N, 2, 3] of random crops, half of them mirrored, for `affine_grid`."""
    area, aspect, across, down = torch.rand(4, count, generator=draw.generator)
    area = _AREA[0] + (_AREA[1] - _AREA[0]) * area
    low, high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
    aspect = torch.exp(low + (high - low) * aspect)
    width = (area * aspect).sqrt().clamp(max=1.0)
    height = (area / aspect).sqrt().clamp(max=1.0)
    matrices = torch.zeros(count, 2, 3)
    matrices[:, 0, 0] = torch.where(draw.flips(count), -width, width)
    matrices[:, 1, 1] = height
    matrices[:, 0, 2] = (1 - width) * (2 * across - 1)
    matrices[:, 1, 2] = (1 - height) * (2 * down - 1)
    return matrices


def _rotated(matrices: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """The crops turned about their centres, radians [N]."""
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    return torch.cat([matrices[:, :, :2] @ turn, matrices[:, :, 2:]], 2)


def _sampled(images: torch.Tensor, matrices: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear, without antialiasing: a crop is shrunk by the margin at most."""
    matrices = _moved(matrices, images.device)
    grid = functional.affine_grid(matrices, [len(images), 3, size, size], align_corners=False)
    view = functional.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    return view.div_(255)


def _coloured(view: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """torchvision's adjust_brightness, adjust_contrast and adjust_saturation, with factors [3, N, 1, 1, 1]."""
    brightness, contrast, saturation = factors
    view = (view * brightness).clamp_(0, 1)
    grey = _v2().rgb_to_grayscale(view).mean((1, 2, 3), keepdim=True)
    view = grey.lerp(view, contrast).clamp_(0, 1)
    return torch.lerp(_v2().rgb_to_grayscale(view), view, saturation).clamp_(0, 1)


def _to_float(images: torch.Tensor) -> torch.Tensor:
    converted: torch.Tensor = _v2().to_dtype(images, torch.float32, scale=True)
    return converted


def _reflected(position: torch.Tensor, size: int) -> torch.Tensor:
    """Positions beyond the first and the last pixel, mirrored at these."""
    return (size - 1) - ((size - 1) - position.abs()).abs()


def _moved(drawn: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device without waiting for it: from pinned memory, for a copy from any other waits."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)


@functools.lru_cache(maxsize=32)
def _channels(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as [3, 1, 1], kept on the device: torchvision's normalize would copy them, and wait, at every step."""
    with torch.inference_mode(False):  # who asks first must not decide who may use them for gradients
        return torch.tensor(mean, device=device).view(3, 1, 1), torch.tensor(std, device=device).view(3, 1, 1)


def _registered(name: str) -> _Registered:
    if name not in AUGMENTATIONS:
        raise InvalidArgumentError.field("augment", name, f"one of {', '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[name]


@functools.cache
def _v2() -> Any:
    torchvision()
    from torchvision.transforms.v2 import functional as v2

    return v2
