"""Layers on our operators: drop-in modules with the parameters, names and numbers of their `torch.nn` kin."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pyserve.errors import InvalidArgumentError
from pyserve.kernels.batch_norm import batch_norm_relu
from pyserve.kernels.calls import BOUNDS, Activation, activated
from pyserve.kernels.ops import bias_relu, conv2d
from pyserve.kernels.pooled import Window, conv2d_pool
from pyserve.kernels.statistics import conv2d_statistics, gives_statistics


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` on `pyserve.kernels.conv2d`: same arguments, parameters, state-dict keys and numbers.

    Takes, beside the picture x [N, C, H, W] or [C, H, W], what the same pass over the output can do as well: a
    residual to add and an activation ("none", "relu", "relu6").
    """

    def forward(self, x: Tensor, residual: Tensor | None = None, activation: Activation = "none") -> Tensor:
        """`activation(conv(x) + residual)`, [N, K, P, Q]; the residual may be any tensor that broadcasts."""
        return self._convolve(x, *self._weights(), residual, activation)

    @staticmethod
    def adopt(module: nn.Conv2d) -> None:
        """Make a plain `torch.nn.Conv2d` one of ours where it stands; parameters, mode and hooks stay."""
        module.__class__ = Conv2d

    def _convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: Activation
    ) -> Tensor:
        padding: str | list[int]
        if self.padding_mode == "zeros":
            padding = self.padding if isinstance(self.padding, str) else list(self.padding)
        else:
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), [0, 0]
        numbers = list(self.stride), padding, list(self.dilation), self.groups
        if residual is None or self._fits(x, padding, residual):
            return conv2d(x, weight, bias, *numbers, residual=residual, activation=activation)
        y = conv2d(x, weight, bias, *numbers) + residual
        return activated(y, activation)

    def _fits(self, x: Tensor, padding: str | list[int], residual: Tensor) -> bool:
        """Whether the residual has the output's sizes and type, so that the epilogue can add it."""
        if residual.dim() != x.dim() or residual.dtype != x.dtype:
            return False
        batch = [*x.shape[:-3], self.out_channels]
        return list(residual.shape) == batch + [
            self._output_size(axis, x.shape[axis - 2], padding if isinstance(padding, str) else padding[axis])
            for axis in (0, 1)
        ]

    def _output_size(self, axis: int, size: int, padding: int | str) -> int:
        """P of H (axis 0) or Q of W (axis 1)."""
        if padding == "same":
            return size
        added = padding if isinstance(padding, int) else 0  # "valid" adds none
        taps = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        return (size + 2 * added - taps) // self.stride[axis] + 1

    def _weights(self) -> tuple[Tensor, Tensor | None]:
        """What is convolved with, and the bias."""
        return self.weight, self.bias

    def _numbers(self) -> tuple[list[int], list[int], list[int], int]:
        """stride, padding (by numbers), dilation and groups, as the operators take them."""
        padding = cast("tuple[int, ...]", self.padding)
        return list(self.stride), list(padding), list(self.dilation), self.groups

    def with_statistics(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """conv(x) [N, K, P, Q], and the mean and variance [K] of its channels; padding by numbers, with zeros."""
        return conv2d_statistics(x, self.weight, self.bias, *self._numbers())

    def with_pool(self, x: Tensor, window: Window, activation: Activation = "none") -> Tensor:
        """Max pooling of activation(conv(x)), [N, K, P', Q'], without a gradient; padding as above."""
        weight, bias = self._weights()
        return conv2d_pool(x, weight, bias, *self._numbers(), window, activation)

    def wants_gradient(self, x: Tensor) -> bool:
        """Whether somebody may ask for the gradient of conv(x)."""
        tensors = [x, *self._weights()]
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class FoldedConv2d(Conv2d):
    """A convolution with the BatchNorm that follows it folded in, for inference, with the running statistics.

    `weight` and `bias` stay those of the convolution and the BatchNorm stays where it is in its model, so that the
    state dict is the plain model's; the products of both are buffers outside the state dict.
    """

    folded_weight: Tensor
    folded_bias: Tensor

    @staticmethod
    def adopt_with(module: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        """Make a convolution a folded one where it stands."""
        module.__class__ = FoldedConv2d
        module.register_buffer("folded_weight", None, persistent=False)
        module.register_buffer("folded_bias", None, persistent=False)
        cast("FoldedConv2d", module).fold(norm)

    @torch.no_grad()
    def fold(self, norm: nn.BatchNorm2d) -> None:
        """Compute the folded weights from the present state of the convolution and of `norm` (in float64)."""
        mean, variance = cast("Tensor", norm.running_mean).double(), cast("Tensor", norm.running_var).double()
        scale = (variance + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        bias = -mean if self.bias is None else self.bias.double() - mean
        shift = bias * scale if norm.bias is None else bias * scale + norm.bias.double()
        weight = self.weight.double() * scale.reshape(-1, 1, 1, 1)
        self.folded_weight = weight.to(self.weight.dtype, memory_format=torch.channels_last)
        self.folded_bias = shift.to(self.weight.dtype)

    def _weights(self) -> tuple[Tensor, Tensor]:
        return self.folded_weight, self.folded_bias


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` on `pyserve.kernels.batch_norm_relu`: same arguments, state and numbers.

    Takes, beside x [N, C, H, W], what the same pass can do as well: a residual to add and an activation.
    """

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        activation: Activation = "none",
        statistics: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """`activation(norm(x) + residual)`, the sizes of x; the residual may be any tensor that broadcasts.

        `statistics`: the mean and the biased variance of x, where they are known.
        """
        self._check_input_dim(x)
        fits = residual is None or (residual.shape == x.shape and residual.dtype == x.dtype)
        training = self.training or self.running_mean is None
        remembers = self.training and self.track_running_stats
        y = batch_norm_relu(
            x,
            None if self.training and not remembers else self.running_mean,
            None if self.training and not remembers else self.running_var,
            self.weight,
            self.bias,
            training,
            self._next_momentum() if remembers else 0.0,
            self.eps,
            residual=residual if fits else None,
            activation=activation if fits else "none",
            statistics=statistics,
        )
        return y if fits or residual is None else activated(y + residual, activation)

    @staticmethod
    def adopt(module: nn.BatchNorm2d) -> None:
        """Make a plain `torch.nn.BatchNorm2d` one of ours where it stands; parameters, state, mode, hooks stay."""
        module.__class__ = BatchNorm2d

    def _next_momentum(self) -> float:
        """Counts the batch; its share in the running statistics: without a momentum all batches count alike."""
        if self.num_batches_tracked is None:
            return self.momentum or 0.0
        self.num_batches_tracked.add_(1)
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum


def conv_norm(
    conv: Conv2d,
    norm: BatchNorm2d,
    x: Tensor,
    residual: Tensor | None = None,
    activation: Activation = "none",
) -> Tensor:
    """`norm(conv(x), residual, activation)` in training; the convolution gives the statistics where it can.

    It cannot where somebody watches either module, the BatchNorm is frozen, or x is a stand-in of torch.fx.
    """
    plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    traced = isinstance(x, fx.Proxy)
    if traced or _watched(conv, norm) or not norm.training or not plain or x.dim() != 4 or not gives_statistics(x):
        others = () if residual is None else (residual,)
        options = {} if activation == "none" else {"activation": activation}
        y: Tensor = norm(conv(x), *others, **options)
        return y
    y, statistics = conv.with_statistics(x)
    return norm.forward(y, residual, activation, statistics)


def conv_pool(
    conv: Conv2d, pool: nn.MaxPool2d, x: Tensor, window: Window, *, activation: Activation = "none"
) -> Tensor:
    """`pool(conv(x, activation=activation))` for prediction, in one pass where a kernel has both.

    It does not where somebody watches either module or may want a gradient, or x is a stand-in of torch.fx.
    `window` is the pooling's: size, stride, padding.
    """
    traced = isinstance(x, fx.Proxy)
    if traced or _watched(conv, pool) or x.dim() != 4 or conv.wants_gradient(x):
        options = {} if activation == "none" else {"activation": activation}
        y: Tensor = pool(conv(x, **options))
        return y
    return conv.with_pool(x, window, activation)


def _watched(*modules: nn.Module) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules)


class AddReLU(nn.Module):
    """`relu(x + residual)`, or `relu(x)`, in one pass; with "relu6" clamped at 6.

    Takes whatever `torch.relu` takes: what our operator does not (fewer than two dimensions, integers, a residual
    that must be broadcast) goes to PyTorch's.
    """

    def __init__(self, activation: Activation = "relu") -> None:
        super().__init__()
        if activation not in BOUNDS:
            raise InvalidArgumentError.field("AddReLU.activation", activation, "one of " + ", ".join(BOUNDS))
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The sizes of x (of x + residual)."""
        if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
            x, residual = x + residual, None
        if x.dim() < 2 or not x.is_floating_point():
            return activated(x if residual is None else x + residual, self.activation)
        return bias_relu(x, None, residual, activation=self.activation)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return self.activation


class ConvBNReLU(nn.Module):
    """Convolution, BatchNorm, activation, with an optional residual added before the activation.

    The building block for networks written on our operators; `fuse(model, inference=True)` folds it.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups: as in `torch.nn.Conv2d`.
        padding: default: such that stride 1 keeps the sizes (odd kernels).
        activation: "none", "relu" or "relu6".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        *,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2 if padding is None else padding
        self.conv = Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = AddReLU(activation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`activation(norm(conv(x)) + residual)`, [N, K, P, Q]."""
        y: Tensor = self.act(self.norm(self.conv(x)), residual)
        return y
