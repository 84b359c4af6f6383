"""The operators: Python face, fake (meta) implementation and gradient of each, side by side.

The schemas are in `csrc/ops.cpp`; argument checks and their sentences in `csrc/checks.cpp`, which the operators,
the fakes (through `_C`) and therefore the wrappers share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyserve.errors import InvalidArgumentError
from pyserve.kernels._extension import C
from pyserve.kernels.calls import (
    Activation,
    Size2,
    bounds_of,
    call,
    checked,
    is_active,
    output_format,
    pair,
    register,
    told,
)

_cudnn: Any = torch.backends.cudnn

# ------------------------------------------------------------ conv2d


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size2 = 1,
    padding: Size2 | str = 0,
    dilation: Size2 = 1,
    groups: int = 1,
    *,
    residual: Tensor | None = None,
    activation: Activation = "none",
) -> Tensor:
    """`activation(torch.nn.functional.conv2d(x, weight, bias, …) + residual)` in one pass over the output.

    Args:
        x: [N, C, H, W], or [C, H, W]; any layout, channels-last is the quickest.
        weight: [K, C/groups, R, S].
        bias: [K].
        stride, padding, dilation, groups: as in `torch.nn.functional.conv2d`, padding "same" and "valid" included.
        residual: added before the activation; the output's sizes.
        activation: "none", "relu" or "relu6". NaN stays NaN.

    Returns:
        [N, K, P, Q] (or [K, P, Q]) in the memory format of x.

    Raises:
        InvalidArgumentError: with the sentence that names the argument, what it is and what was expected.
    """
    lo, hi = bounds_of("conv2d", activation)
    stride, dilation = pair(stride), pair(dilation)
    if x.dim() == 3:
        x4, residual4 = x.unsqueeze(0), None if residual is None else residual.unsqueeze(0)
        y = conv2d(x4, weight, bias, stride, padding, dilation, groups, residual=residual4, activation=activation)
        return y.squeeze(0)
    if isinstance(padding, str):
        x, padding = _named_padding(x, weight, stride, padding, dilation)
    numbers = (stride, pair(padding), dilation, groups)
    result: Tensor = call(torch.ops.pyserve.conv2d, x, weight, bias, residual, *numbers, lo, hi, takes_tf32(x))
    return result


def takes_tf32(x: Tensor) -> bool:
    """Whether a convolution of x may compute in TF32: float32 on a GPU where PyTorch's setting allows it."""
    return x.is_cuda and x.dtype is torch.float32 and tf32_allowed()


def tf32_allowed() -> bool:
    """Whether PyTorch's own convolutions of float32 may use TF32 on a GPU; a compiled graph keeps the answer."""
    return bool(_cudnn.conv.fp32_precision == "tf32")


# What torch.compiler.assume_constant_result does, without loading the compiler here.
tf32_allowed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _named_padding(
    x: Tensor, weight: Tensor, stride: list[int], padding: str, dilation: list[int]
) -> tuple[Tensor, list[int]]:
    """The numbers for "valid" and "same"; where "same" needs one more on the far side, x comes back padded."""
    if padding == "valid":
        return x, [0, 0]
    if padding != "same":
        raise InvalidArgumentError.field("conv2d.padding", padding, 'numbers, "same" or "valid"')
    if any(step != 1 for step in stride):
        raise InvalidArgumentError.field("conv2d.stride", tuple(stride), '1 with padding "same"')
    totals = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
    extra_h, extra_w = (total % 2 for total in totals)
    if extra_h or extra_w:
        x = F.pad(x, [0, extra_w, 0, extra_h])
    return x, [total // 2 for total in totals]


def conv2d_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    lo: float,
    hi: float,
    tf32: bool = False,
) -> Tensor:
    sizes = _conv2d_sizes(x, weight, bias, residual, stride, padding, dilation, groups, lo, hi)
    return torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=output_format(x))


register.register_fake("pyserve::conv2d", conv2d_fake)


def _conv2d_sizes(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    lo: float,
    hi: float,
) -> list[int]:
    """The output's sizes, checked by our rules; by PyTorch's where a size is symbolic, and by ours at run time."""
    tensors = (x, weight, bias, residual)
    if all(type(size) is int for tensor in tensors if tensor is not None for size in tensor.shape):
        all_told = [told(tensor) for tensor in tensors]
        sizes: list[int] = checked(C.check_conv2d, *all_told, stride, padding, dilation, groups, lo, hi)
        return sizes
    y = torch.ops.aten.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)
    return list(y.shape)


def _conv2d_backward_fake(
    grad: Tensor,
    y: Tensor | None,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    lo: float,
    hi: float,
    wanted: list[bool],
    tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def like(tensor: Tensor, sizes: Any, wanted: bool) -> Tensor:
        if not wanted:
            return x.new_empty([0])
        return torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=output_format(tensor))

    return (
        like(x, x.shape, wanted[0]),
        like(weight, weight.shape, wanted[1]),
        x.new_empty([weight.shape[0]] if wanted[2] else [0]),
        like(x, grad.shape, wanted[3]),
    )


register.register_fake("pyserve::conv2d_backward", _conv2d_backward_fake)


def _conv2d_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, residual, *ctx.sizes, ctx.lo, ctx.hi, ctx.tf32 = inputs
    ctx.save_for_backward(x, weight, output if is_active(ctx.lo, ctx.hi) else None)
    ctx.has = (bias is not None, residual is not None)


def _conv2d_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, y = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
    active = is_active(ctx.lo, ctx.hi)
    wanted = [needs_x, needs_weight, needs_bias and ctx.has[0], needs_residual and ctx.has[1] and active]
    got = torch.ops.pyserve.conv2d_backward(grad, y, x, weight, *ctx.sizes, ctx.lo, ctx.hi, wanted, ctx.tf32)
    gradients = [tensor if asked else None for tensor, asked in zip(got, wanted, strict=True)]
    if needs_residual and ctx.has[1] and not active:
        gradients[3] = grad
    return (*gradients, None, None, None, None, None, None, None)


register.register_autograd("pyserve::conv2d", _conv2d_gradient, setup_context=_conv2d_setup)


def _conv2d_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, y, x, weight, *ctx.sizes, ctx.lo, ctx.hi, ctx.wanted, ctx.tf32 = inputs
    ctx.save_for_backward(grad, y, x, weight)


def _conv2d_double_gradient(
    ctx: Any, gg_x: Tensor, gg_weight: Tensor, gg_bias: Tensor, gg_residual: Tensor
) -> tuple[Any, ...]:
    """The gradient of the gradients: these are bilinear in the masked grad and in x or weight."""
    grad, y, x, weight = ctx.saved_tensors
    wanted, needs = ctx.wanted, ctx.needs_input_grad
    none = (-math.inf, math.inf)
    d_grad = d_x = d_weight = None
    if needs[0]:
        parts = []
        if wanted[0]:
            parts.append(torch.ops.pyserve.conv2d(gg_x, weight, None, None, *ctx.sizes, *none, ctx.tf32))
        if wanted[1]:
            parts.append(torch.ops.pyserve.conv2d(x, gg_weight, None, None, *ctx.sizes, *none, ctx.tf32))
        if wanted[2]:
            parts.append(gg_bias.reshape(1, -1, 1, 1).expand_as(grad))
        if wanted[3]:
            parts.append(gg_residual)
        total = sum(parts[1:], parts[0])
        d_grad = torch.ops.pyserve.bias_relu_backward(total, y, ctx.lo, ctx.hi, False)[0]
    backward = torch.ops.pyserve.conv2d_backward
    if needs[2] and wanted[1]:
        only_x = [True, False, False, False]
        d_x = backward(grad, y, x, gg_weight, *ctx.sizes, ctx.lo, ctx.hi, only_x, ctx.tf32)[0]
    if needs[3] and wanted[0]:
        only_weight = [False, True, False, False]
        d_weight = backward(grad, y, gg_x, weight, *ctx.sizes, ctx.lo, ctx.hi, only_weight, ctx.tf32)[1]
    return (d_grad, None, d_x, d_weight, None, None, None, None, None, None, None, None)


register.register_autograd(
    "pyserve::conv2d_backward", _conv2d_double_gradient, setup_context=_conv2d_backward_setup
)


# ------------------------------------------------------------ bias_relu


def bias_relu(
    x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, *, activation: Activation = "relu"
) -> Tensor:
    """`activation(x + bias + residual)` in one pass.

    Args:
        x: [N, C, ...] of two or more dimensions, any layout.
        bias: [C].
        residual: the sizes of x.
        activation: "none", "relu" or "relu6". NaN stays NaN.

    Returns:
        The sizes and the memory format of x.

    Raises:
        InvalidArgumentError: with the sentence that names the argument, what it is and what was expected.
    """
    lo, hi = bounds_of("bias_relu", activation)
    result: Tensor = call(torch.ops.pyserve.bias_relu, x, bias, residual, lo, hi)
    return result


def _bias_relu_fake(x: Tensor, bias: Tensor | None, residual: Tensor | None, lo: float, hi: float) -> Tensor:
    tensors = (x, bias, residual)
    if all(type(size) is int for tensor in tensors if tensor is not None for size in tensor.shape):
        checked(C.check_bias_relu, *(told(tensor) for tensor in tensors), lo, hi)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=output_format(x))


register.register_fake("pyserve::bias_relu", _bias_relu_fake)


def _bias_relu_backward_fake(
    grad: Tensor, y: Tensor | None, lo: float, hi: float, bias_wanted: bool
) -> tuple[Tensor, Tensor]:
    format_of = grad if y is None else y
    dx = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device, memory_format=output_format(format_of))
    return dx, grad.new_empty([grad.shape[1]] if bias_wanted else [0])


register.register_fake("pyserve::bias_relu_backward", _bias_relu_backward_fake)


def _bias_relu_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, bias, residual, ctx.lo, ctx.hi = inputs
    ctx.save_for_backward(output if is_active(ctx.lo, ctx.hi) else None)
    ctx.has = (bias is not None, residual is not None)


def _bias_relu_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (y,) = ctx.saved_tensors
    needs_x, needs_bias, needs_residual = ctx.needs_input_grad[:3]
    needs_bias = needs_bias and ctx.has[0]
    dx, dbias = torch.ops.pyserve.bias_relu_backward(grad, y, ctx.lo, ctx.hi, needs_bias)
    return (
        dx if needs_x else None,
        dbias if needs_bias else None,
        dx if needs_residual and ctx.has[1] else None,
        None,
        None,
    )


register.register_autograd("pyserve::bias_relu", _bias_relu_gradient, setup_context=_bias_relu_setup)


def _bias_relu_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, y, ctx.lo, ctx.hi, ctx.bias_wanted = inputs
    ctx.save_for_backward(y)


def _bias_relu_double_gradient(ctx: Any, gg_x: Tensor, gg_bias: Tensor) -> tuple[Any, ...]:
    (y,) = ctx.saved_tensors
    total = gg_x
    if ctx.bias_wanted:
        total = total + gg_bias.reshape(1, -1, *[1] * (gg_x.dim() - 2))
    return torch.ops.pyserve.bias_relu_backward(total, y, ctx.lo, ctx.hi, False)[0], None, None, None, None


register.register_autograd(
    "pyserve::bias_relu_backward", _bias_relu_double_gradient, setup_context=_bias_relu_backward_setup
)


# ------------------------------------------------------------ autocast


def _autocast(name: str, device: str) -> Callable[..., Any]:
    """Like PyTorch's own convolution: under autocast all tensors are cast to the autocast dtype."""

    def cast_and_call(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        cast = [
            arg.to(dtype) if isinstance(arg, Tensor) and arg.dtype in (torch.float32, *HALVES) else arg
            for arg in args
        ]
        with torch.autocast(device, enabled=False):
            return getattr(torch.ops.pyserve, name)(*cast)

    return cast_and_call


HALVES = (torch.float16, torch.bfloat16)
_library = register.Library("pyserve", "IMPL")  # keeps the registrations alive
for _name in ("conv2d", "conv2d_pool", "conv2d_statistics"):
    _library.impl(_name, _autocast(_name, "cpu"), "AutocastCPU")
    _library.impl(_name, _autocast(_name, "cuda"), "AutocastCUDA")
