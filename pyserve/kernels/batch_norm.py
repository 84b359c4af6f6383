"""BatchNorm with residual and activation as one operator: Python face, fake (meta) implementation and gradient.

In training, a ResNet spends more memory traffic on BatchNorm and ReLU than on its convolutions: here they are one
pass over x for the statistics (none where the convolution before gives them) and one that normalises, adds, clamps
and writes; backward, one for the sums and one for dx.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyserve.kernels._extension import CUDA_LOADED, C
from pyserve.kernels.calls import (
    Activation,
    activated,
    bounds_of,
    call,
    checked,
    is_active,
    output_format,
    register,
    told,
)

_DTYPES: dict[str, tuple[torch.dtype, ...]] = {"cpu": (torch.float32, torch.bfloat16, torch.float64)}
if CUDA_LOADED:
    _DTYPES["cuda"] = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def batch_norm_relu(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: Activation = "relu",
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`activation(torch.nn.functional.batch_norm(x, …) + residual)`.

    Args:
        x: [N, C, H, W] or [N, C]; any layout, channels-last is the quickest.
        running_mean, running_var: [C]; updated in training as PyTorch does, with the unbiased variance.
        weight, bias: [C], or None for ones and zeros.
        training: normalise with the statistics of this batch, and remember them.
        momentum: the share of this batch in the running statistics.
        residual: added before the activation; the sizes of x.
        activation: "none", "relu" or "relu6". NaN stays NaN.
        statistics: in training, the mean and the biased variance [C] of x, where they are known already
            (`conv2d_statistics`): x is then read once. The gradient is that of training all the same.

    Returns:
        The sizes and the memory format of x. What our kernels do not have (devices, element types, three or five
        dimensions) is done by PyTorch's operators, and counted.

    Raises:
        InvalidArgumentError: with the sentence that names the argument, what it is and what was expected.
        ValueError: training with one value per channel.
    """
    lo, hi = bounds_of("batch_norm_relu", activation)
    of_batch = training or running_mean is None or running_var is None
    if of_batch and x.numel() <= x.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
    if not _is_ours(x, weight, bias, running_mean):
        if not torch.compiler.is_compiling():
            told_type = str(x.dtype).removeprefix("torch.")
            C.count_fallback("batch_norm_relu", f"{x.dim()} dimensions of {told_type} on {x.device.type}")
        y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        return activated(y if residual is None else y + residual, activation)
    given = (statistics or (None, None)) if of_batch else (running_mean, running_var)
    known = of_batch and statistics is not None
    y, mean, var = call(
        torch.ops.pyserve.batch_norm_relu, x, weight, bias, residual, *given, float(eps), lo, hi, known
    )
    if known and statistics is not None:
        mean, var = statistics
    if training and running_mean is not None and running_var is not None:
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    result: Tensor = y
    return result


def _is_ours(x: Tensor, *of_channels: Tensor | None) -> bool:
    if x.dim() not in (2, 4) or x.dtype not in _DTYPES.get(x.device.type, ()):
        return False
    # A graph is compiled for the GPU that it is compiled on.
    if x.is_cuda and not torch.compiler.is_compiling() and torch.cuda.get_device_capability(x.device) < (8, 0):
        return False
    parameters = torch.float64 if x.dtype is torch.float64 else torch.float32
    return all(tensor is None or tensor.dtype is parameters for tensor in of_channels)


def _fake(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    lo: float,
    hi: float,
    of_batch: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (x, weight, bias, residual, mean, var)
    if all(type(size) is int for tensor in tensors if tensor is not None for size in tensor.shape):
        checked(C.check_batch_norm_relu, *(told(tensor) for tensor in tensors), eps, lo, hi)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=output_format(x))
    return y, _statistics_like(x, mean is None), _statistics_like(x, mean is None)


def _statistics_like(x: Tensor, wanted: bool) -> Tensor:
    return x.new_empty(
        [x.shape[1] if wanted else 0], dtype=torch.float64 if x.dtype is torch.float64 else torch.float32
    )


register.register_fake("pyserve::batch_norm_relu", _fake)


def _backward_fake(
    grad: Tensor,
    y: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    lo: float,
    hi: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def like_x(asked: bool) -> Tensor:
        if not asked:
            return x.new_empty([0])
        return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=output_format(x))

    of_channels = (_statistics_like(x, wanted[1]), _statistics_like(x, wanted[2]))
    return like_x(wanted[0]), *of_channels, like_x(wanted[3])


register.register_fake("pyserve::batch_norm_relu_backward", _backward_fake)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, residual, mean, var, ctx.eps, ctx.lo, ctx.hi, of_batch = inputs
    y, batch_mean, batch_var = output
    ctx.mark_non_differentiable(batch_mean, batch_var)
    ctx.set_materialize_grads(False)
    ctx.training = mean is None or of_batch
    statistics = (batch_mean, batch_var) if mean is None else (mean, var)
    needs_y = residual is not None and is_active(ctx.lo, ctx.hi)
    ctx.save_for_backward(x, weight, bias, *statistics, y if needs_y else None)
    ctx.has = (weight is not None, bias is not None, residual is not None)


def _gradient(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 10
    x, weight, bias, mean, var, y = ctx.saved_tensors
    needs = ctx.needs_input_grad
    has_weight, has_bias, has_residual = ctx.has
    active = is_active(ctx.lo, ctx.hi)
    needs_residual = needs[3] and has_residual
    wanted = [needs[0], needs[1] and has_weight, needs[2] and has_bias, needs_residual and active]
    got = torch.ops.pyserve.batch_norm_relu_backward(
        grad, y, x, weight, bias, mean, var, ctx.training, ctx.eps, ctx.lo, ctx.hi, wanted
    )
    gradients = [tensor if asked else None for tensor, asked in zip(got, wanted, strict=True)]
    if needs_residual and not active:
        gradients[3] = grad
    return (*gradients, *(None,) * 6)


register.register_autograd("pyserve::batch_norm_relu", _gradient, setup_context=_setup)


# ------------------------------------------------------------ the gradient of the gradient


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, y, x, weight, bias, mean, var, ctx.training, ctx.eps, ctx.lo, ctx.hi, ctx.wanted = inputs
    ctx.save_for_backward(grad, y, x, weight, bias, mean, var)


def _double_gradient(ctx: Any, *gg: Tensor) -> tuple[Any, ...]:
    """By PyTorch's operators: nothing here is in a hurry."""
    grad, y, x, weight, bias, mean, var = ctx.saved_tensors
    with torch.enable_grad():
        leaves = [t if t is None else t.detach().requires_grad_() for t in (grad, x, weight)]
        outputs = _plain_backward(leaves[0], y, leaves[1], leaves[2], bias, mean, var, ctx)
        pairs = [(o, g) for o, g, asked in zip(outputs, gg, ctx.wanted, strict=True) if asked]
        wanted = [t for t in leaves if t is not None]
        found = torch.autograd.grad(
            [o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True, create_graph=False
        )
    by_leaf = dict(zip(map(id, wanted), found, strict=True))
    d_grad, d_x, d_weight = (None if t is None else by_leaf[id(t)] for t in leaves)
    return d_grad, None, d_x, d_weight, *(None,) * 8


def _plain_backward(
    grad: Any, y: Any, x: Any, weight: Any, bias: Any, mean: Tensor, var: Tensor, ctx: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the backward operator computes, differentiable."""
    shape = [1, -1, *[1] * (x.dim() - 2)]
    dims = [d for d in range(x.dim()) if d != 1]
    count = x.numel() // x.shape[1]
    if ctx.training:
        mean, var = x.mean(dims), x.var(dims, correction=0)
    scale = torch.ones_like(mean) if weight is None else weight
    inverse = (var + ctx.eps).rsqrt()
    normal = (x - mean.view(shape)) * inverse.view(shape)
    if y is None:
        y = normal * scale.view(shape) + (0 if bias is None else bias.view(shape))
    g = grad.masked_fill((y <= ctx.lo) | (y >= ctx.hi), 0)
    d_weight, d_bias = (g * normal).sum(dims), g.sum(dims)
    through = g
    if ctx.training:
        through = g - (d_bias.view(shape) + normal * d_weight.view(shape)) / count
    return through * (scale * inverse).view(shape), d_weight, d_bias, g


register.register_autograd("pyserve::batch_norm_relu_backward", _double_gradient, setup_context=_backward_setup)
