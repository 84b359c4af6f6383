"""`conv2d` with the max pooling after it, for prediction: the unpooled map need not go through memory."""

from __future__ import annotations

import torch
from torch import Tensor

from pyserve.kernels.calls import Activation, Size2, bounds_of, call, output_format, pair, register
from pyserve.kernels.ops import conv2d_fake, takes_tf32

Window = tuple[int, int, int]  # of a square max pooling: size, stride, padding


def conv2d_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size2,
    padding: Size2,
    dilation: Size2,
    groups: int,
    window: Window,
    activation: Activation = "none",
) -> Tensor:
    """`max_pool2d(activation(conv2d(x, weight, bias, …)), *window)`, [N, K, P', Q'], in x's memory format.

    In one pass where a kernel has both (`csrc/variants.h`), else by `conv2d` and PyTorch's max pooling. It has no
    gradient.

    Raises:
        InvalidArgumentError: what `conv2d` refuses.
        RuntimeError: a window that PyTorch's `max_pool2d` refuses.
    """
    lo, hi = bounds_of("conv2d", activation)
    numbers = (pair(stride), pair(padding), pair(dilation), groups)
    y: Tensor = call(torch.ops.pyserve.conv2d_pool, x, weight, bias, *numbers, list(window), lo, hi, takes_tf32(x))
    return y


def pooled_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Output positions of a max pooling along one axis."""
    return (size + 2 * padding - kernel) // stride + 1


def _conv2d_pool_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    pool: list[int],
    lo: float,
    hi: float,
    tf32: bool = False,
) -> Tensor:
    n, k, p, q = conv2d_fake(x, weight, bias, None, stride, padding, dilation, groups, lo, hi).shape
    sizes = [n, k, *(pooled_size(size, *pool) for size in (p, q))]
    return torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=output_format(x))


register.register_fake("pyserve::conv2d_pool", _conv2d_pool_fake)
