"""`conv2d` that also gives the statistics of its output: the BatchNorm after it then reads that once less."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyserve.kernels._extension import CUDA_LOADED
from pyserve.kernels.calls import Size2, call, pair, register
from pyserve.kernels.ops import HALVES, conv2d_fake, takes_tf32, tf32_allowed


def gives_statistics(x: Tensor) -> bool:
    """Whether a convolution of x should give the statistics for a BatchNorm: where tensor cores compute it."""
    if not (CUDA_LOADED and x.is_cuda):
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    return dtype in HALVES or (dtype is torch.float32 and tf32_allowed())


def conv2d_statistics(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size2,
    padding: Size2,
    dilation: Size2,
    groups: int,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`conv2d`, and the mean and the biased variance [K] of each channel of what it gives.

    They are for `batch_norm_relu(…, statistics=…)`, whose gradient knows of them; by themselves they have none. On
    tensor cores they are collected as the output is written. Only devices with kernels of ours have the operator.
    """
    numbers = (pair(stride), pair(padding), pair(dilation), groups)
    y, mean, var = call(torch.ops.pyserve.conv2d_statistics, x, weight, bias, *numbers, takes_tf32(x))
    return y, (mean, var)


def _conv2d_statistics_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    y = conv2d_fake(x, weight, bias, None, stride, padding, dilation, groups, -math.inf, math.inf)
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    mean, var = (x.new_empty([weight.shape[0]], dtype=wide) for _ in range(2))
    return y, mean, var


register.register_fake("pyserve::conv2d_statistics", _conv2d_statistics_fake)


def _conv2d_statistics_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, *ctx.sizes, ctx.tf32 = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _conv2d_statistics_gradient(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 8
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    wanted = [needs_x, needs_weight, needs_bias and ctx.has_bias, False]
    got = torch.ops.pyserve.conv2d_backward(
        grad, None, x, weight, *ctx.sizes, -math.inf, math.inf, wanted, ctx.tf32
    )
    return (*(tensor if asked else None for tensor, asked in zip(got[:3], wanted, strict=False)), *(None,) * 5)


register.register_autograd(
    "pyserve::conv2d_statistics", _conv2d_statistics_gradient, setup_context=_conv2d_statistics_setup
)
