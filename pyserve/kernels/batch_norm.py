"""BatchNorm with residual and activation in two passes over the output, three over its gradient.

PyTorch makes a pass each for the statistics, the normalisation, the addition and the activation, and as many for
the gradients; in training a ResNet that is where most of the memory traffic goes. Ours are CUDA kernels; elsewhere
PyTorch's operators are taken.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyserve.errors import InvalidArgumentError
from pyserve.kernels._extension import CUDA_LOADED, C
from pyserve.kernels.ops import Activation, _active, _bounds, _call, _checked, _told, output_format

_register: Any = torch.library  # whose functions have no types
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def batch_norm_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: Activation = "relu",
) -> Tensor:
    """`activation(torch.nn.functional.batch_norm(x, …) + residual)`.

    Args:
        x: [N, C, ...] of two or more dimensions.
        weight, bias: [C].
        residual: the sizes of x.
        running_mean, running_var: [C]; in training they are updated in place, else they are the statistics.
        training: take the statistics of x, as is also done without running ones.
        momentum: of the new statistics in the running ones.
        eps: added to the variance.
        activation: "none", "relu" or "relu6". NaN stays NaN.

    Returns:
        The sizes and the memory format of x.

    Raises:
        InvalidArgumentError: with the sentence that names the argument, what it is and what was expected.
    """
    lo, hi = _bounds("batch_norm_relu", activation)
    training = training or running_mean is None or running_var is None
    if training and x.dim() >= 2 and x.numel() <= x.shape[1]:
        sizes = list(x.shape)
        raise InvalidArgumentError.field("batch_norm_relu.x", sizes, "more than one value per channel in training")
    if not _has_kernel(x):
        y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        return _activated(y if residual is None else y + residual, lo, hi)
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    mean = inv_std = None
    if not training and running_mean is not None and running_var is not None:
        mean, inv_std = running_mean.to(wide), (running_var.to(wide) + eps).rsqrt()
    arguments = (x, weight.to(wide), bias.to(wide), residual, mean, inv_std, eps, lo, hi)
    result: tuple[Tensor, Tensor, Tensor] = _call(torch.ops.pyserve.batch_norm_relu, *arguments)
    batch_mean, batch_inv_std = result[1:]
    if mean is None and running_mean is not None and running_var is not None:
        _update(running_mean, running_var, batch_mean, batch_inv_std, x.numel() // x.shape[1], momentum, eps)
    return result[0]


def _has_kernel(x: Tensor) -> bool:
    """Whether our kernels take x; where not, on a GPU that we are loaded for, it is counted."""
    if not (CUDA_LOADED and x.is_cuda):
        return False
    if x.dtype in _DTYPES and x.dim() in (2, 4) and x.numel() > 0:
        return torch.compiler.is_compiling() or torch.cuda.get_device_capability(x.device) >= (8, 0)
    if not torch.compiler.is_compiling():
        C.count_fallback(
            "batch_norm_relu", f"{x.dim()} dimensions of {str(x.dtype).removeprefix('torch.')} on cuda"
        )
    return False


def _activated(y: Tensor, lo: float, hi: float) -> Tensor:
    if (lo, hi) == (0.0, float("inf")):
        return F.relu(y)
    return y.clamp(lo, hi) if _active(lo, hi) else y


@torch.no_grad()
def _update(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    count: int,
    momentum: float,
    eps: float,
) -> None:
    """Running statistics as PyTorch keeps them: the variance corrected for the sample's size."""
    variance = (inv_std.square().reciprocal() - eps) * (count / (count - 1))
    running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    running_var.lerp_(variance.to(running_var.dtype), momentum)


# ------------------------------------------------------------ the operators


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    mean: Tensor | None,
    inv_std: Tensor | None,
    eps: float,
    lo: float,
    hi: float,
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (x, weight, bias, residual, mean, inv_std)
    if all(type(size) is int for tensor in tensors if tensor is not None for size in tensor.shape):
        _checked(C.check_batch_norm_relu, *(_told(tensor) for tensor in tensors), lo, hi)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=output_format(x))
    sizes = [x.shape[1] if mean is None else 0]
    return y, weight.new_empty(sizes), weight.new_empty(sizes)


def _backward_fake(
    grad: Tensor,
    y: Tensor | None,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    training: bool,
    lo: float,
    hi: float,
    residual_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=output_format(x))
    dresidual = torch.empty_like(dx) if residual_wanted else x.new_empty([0])
    return dx, torch.empty_like(weight), torch.empty_like(weight), dresidual


_register.register_fake("pyserve::batch_norm_relu", _fake)
_register.register_fake("pyserve::batch_norm_relu_backward", _backward_fake)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, _, residual, mean, inv_std, _, ctx.lo, ctx.hi = inputs
    ctx.training, ctx.has_residual = mean is None, residual is not None
    y, batch_mean, batch_inv_std = output
    statistics = (batch_mean, batch_inv_std) if ctx.training else (mean, inv_std)
    ctx.save_for_backward(x, weight, *statistics, y if _active(ctx.lo, ctx.hi) else None)


def _gradient(ctx: Any, grad: Tensor, _mean: Tensor, _inv_std: Tensor) -> tuple[Any, ...]:
    x, weight, mean, inv_std, y = ctx.saved_tensors
    wants_residual = ctx.has_residual and ctx.needs_input_grad[3]
    active = _active(ctx.lo, ctx.hi)
    arguments = (ctx.training, ctx.lo, ctx.hi, wants_residual and active)
    got = torch.ops.pyserve.batch_norm_relu_backward(grad, y, x, weight, mean, inv_std, *arguments)
    dx, dweight, dbias, dresidual = got
    if not active:
        dresidual = grad
    return dx, dweight, dbias, dresidual if wants_residual else None, None, None, None, None, None


_register.register_autograd("pyserve::batch_norm_relu", _gradient, setup_context=_setup)
