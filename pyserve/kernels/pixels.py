"""Decoded pictures to a network's input on the CPU, in one pass and one call."""

from __future__ import annotations

import torch
from torch import Tensor

from pyserve.kernels._extension import C
from pyserve.kernels.calls import call, checked, register, told


def normalize_pixels(pixels: Tensor, table: Tensor) -> Tensor:
    """`table[c, pixels[n, c, h, w]]`: what a function of a pixel's channel and value makes of pictures.

    Args:
        pixels: uint8 [N, 3, H, W] on the CPU; any strides, so a crop need not be copied.
        table: float32 or bfloat16 [3, 256].

    Returns:
        [N, 3, H, W] of the table's dtype in channels-last memory. It has no gradient.

    Raises:
        InvalidArgumentError: with the sentence that names the argument, what it is and what was expected.
    """
    y: Tensor = call(torch.ops.pyserve.normalize_pixels, pixels, table)
    return y


def _fake(pixels: Tensor, table: Tensor) -> Tensor:
    if all(type(size) is int for tensor in (pixels, table) for size in tensor.shape):
        checked(C.check_normalize_pixels, told(pixels), told(table))
    return torch.empty(pixels.shape, dtype=table.dtype, device=pixels.device, memory_format=torch.channels_last)


register.register_fake("pyserve::normalize_pixels", _fake)
