"""Small kernels applied to a picture through our own convolution: what one filter of a network does.

Nothing is mirrored: as in a network, the kernel is laid on the picture as it is written (cross-correlation). To
add
a named one: an entry of `IMAGE_KERNELS`, and its name in `pyserve.spec.ImageKernel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pyserve import kernels
from pyserve.errors import InvalidArgumentError
from pyserve.inference.description import Channels
from pyserve.inference.probe import Probe
from pyserve.insight.feature_maps import first_filters

MAX_SIDE = 1024  # pixels of the longer side; larger pictures are made smaller
OWN_SIZES = (2, 3, 5)
_WHITE = 99.5  # per cent of a learned kernel's responses are less than white; those of the others have a scale
_GREY = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601, as Pillow's "L")

IMAGE_KERNELS: dict[str, tuple[tuple[float, ...], ...]] = {
    "identity": ((0, 0, 0), (0, 1, 0), (0, 0, 0)),
    "sobel_top": ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    "sobel_bottom": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    "sobel_left": ((1, 0, -1), (2, 0, -2), (1, 0, -1)),
    "sobel_right": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "emboss": ((-2, -1, 0), (-1, 1, 1), (0, 1, 2)),
    "sharpen": ((0, -1, 0), (-1, 5, -1), (0, -1, 0)),
    "blur": ((1 / 16, 1 / 8, 1 / 16), (1 / 8, 1 / 4, 1 / 8), (1 / 16, 1 / 8, 1 / 16)),
    "outline": ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1)),
}


@dataclass(frozen=True)
class Filtered:
    """A picture and what a kernel made of it."""

    picture: npt.NDArray[np.float32]  # what the kernel saw: [H, W] grey or [H, W, 3], 0…1
    kernel: npt.NDArray[np.float32]  # [R, S], or [3, R, S] of a learned filter
    response: npt.NDArray[np.float32]  # [H, W], as the convolution gives it
    white: float  # the response that is shown white

    @property
    def shown(self) -> npt.NDArray[np.float32]:
        """The response as a picture, 0…1: black is no activation, white is `white` or more."""
        shown: npt.NDArray[np.float32] = np.clip(self.response / self.white, 0, 1).astype(np.float32)
        return shown


def named_kernel(name: str) -> npt.NDArray[np.float32]:
    """The kernel of a name, [3, 3].

    Raises:
        InvalidArgumentError: there is none; names those there are.
    """
    if name not in IMAGE_KERNELS:
        raise InvalidArgumentError.field("name", name, f"one of {', '.join(IMAGE_KERNELS)}")
    return np.array(IMAGE_KERNELS[name], np.float32)


def own_kernel(rows: Sequence[Sequence[float]]) -> npt.NDArray[np.float32]:
    """A kernel as somebody wrote it, [2, 2], [3, 3] or [5, 5].

    Raises:
        InvalidArgumentError: another form, or numbers that are not finite.
    """
    lengths = {len(row) for row in rows}
    if len(rows) not in OWN_SIZES or lengths != {len(rows)}:
        got = f"{len(rows)} rows of {' and '.join(map(str, sorted(lengths))) or 'no'} numbers"
        raise InvalidArgumentError.field("matrix", got, "2 × 2, 3 × 3 or 5 × 5 numbers")
    kernel = np.array(rows, np.float32)
    if not np.isfinite(kernel).all():
        raise InvalidArgumentError.field("matrix", np.array(rows).tolist(), "finite numbers")
    return kernel


def learned_kernel(probe: Probe, channel: int) -> npt.NDArray[np.float32]:
    """A filter of the network's first convolution, [3, R, S]. It wants to see a picture as the network does.

    Raises:
        InvalidArgumentError: it has no such channel.
    """
    name, weights = first_filters(probe)
    if not 0 <= channel < len(weights):
        raise InvalidArgumentError.field("channel", channel, f"0 to {len(weights) - 1} of {name}")
    kernel: npt.NDArray[np.float32] = weights[channel]
    return kernel


def apply_kernel(
    image: Image.Image, kernel: npt.NDArray[np.float32], normalisation: tuple[Channels, Channels] | None = None
) -> Filtered:
    """Lay a kernel on every place of a picture; beyond the edges there is nothing (zeros).

    Args:
        image: RGB; made smaller where its longer side exceeds 1024 pixels.
        kernel: [R, S], which sees the picture in grey, or [3, R, S], which sees its colours.
        normalisation: mean and standard deviation of the colours for a learned kernel; None: they stay 0…1.

    Raises:
        InvalidArgumentError: the picture is smaller than the kernel.
    """
    if max(image.size) > MAX_SIDE:
        image = image.copy()
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    height, width = kernel.shape[-2:]
    if image.height < height or image.width < width:
        raise InvalidArgumentError.field(
            "image", f"{image.width} × {image.height} pixels", f"at least the kernel's {width} × {height}"
        )
    colours = np.asarray(image.convert("RGB"), np.float32) / 255
    picture = colours if kernel.ndim == 3 else colours @ np.array(_GREY, np.float32)
    seen = picture if normalisation is None else (picture - normalisation[0]) / np.array(normalisation[1])
    planes = seen.transpose(2, 0, 1) if kernel.ndim == 3 else seen[None]
    weight = kernel if kernel.ndim == 3 else kernel[None]
    x, w = (torch.from_numpy(np.ascontiguousarray(v, np.float32)) for v in (planes, weight))
    response = kernels.conv2d(x, w[None], padding="same")[0].numpy()
    white = 1.0 if normalisation is None else max(float(np.percentile(response, _WHITE)), 1e-6)
    return Filtered(picture.astype(np.float32), kernel, response, white)
