"""How the operators are called, checked and registered: what their Python faces share."""

from __future__ import annotations

import logging
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pyserve.errors import InvalidArgumentError
from pyserve.kernels._extension import C, logger

Activation = Literal["none", "relu", "relu6"]
Size2 = int | tuple[int, int] | list[int]

register: Any = torch.library  # whose functions have no types

BOUNDS: dict[str, tuple[float, float]] = {
    "none": (-math.inf, math.inf),
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
}
# How the sentences of csrc/checks.cpp begin.
_REFUSALS = ("conv2d: ", "bias_relu: ", "batch_norm_relu: ", "normalize_pixels: ")


def activated(x: Tensor, activation: Activation) -> Tensor:
    """The activation by PyTorch's own operators."""
    if activation == "none":
        return x
    return F.relu6(x) if activation == "relu6" else F.relu(x)


def output_format(x: Tensor) -> torch.memory_format:
    """The memory format that an output takes from x: channels-last where x's strides are ordered so.

    PyTorch's own rule, views and slices included; the same as `is_channels_last` in `csrc/tensors.h`.
    """
    if x.dim() != 4 or x.stride(1) == 0:
        return torch.contiguous_format
    least: Any = 0
    for d in (1, 3, 2, 0):
        size, stride = x.shape[d], x.stride(d)
        if size == 0 or stride < least or (d == 0 and least == x.stride(1)):
            return torch.contiguous_format
        least = stride * size if size > 1 else stride
    return torch.channels_last


def is_active(lo: float, hi: float) -> bool:
    return lo > -math.inf or hi < math.inf


def pair(value: Size2) -> list[int]:
    """(height, width) of what may be one number for both."""
    if isinstance(value, int):
        return [value, value]
    return list(value) * 2 if len(value) == 1 else list(value)


def bounds_of(op: str, activation: str) -> tuple[float, float]:
    if activation not in BOUNDS:
        raise InvalidArgumentError.field(f"{op}.activation", activation, "one of " + ", ".join(BOUNDS))
    return BOUNDS[activation]


def told(tensor: Tensor | None) -> tuple[list[int], str, str] | None:
    """A tensor as `_C` wants to be told of it."""
    if tensor is None:
        return None
    return list(tensor.shape), str(tensor.dtype).removeprefix("torch."), str(tensor.device)


def checked(check: Any, *args: Any) -> Any:
    try:
        return check(*args)
    except C.InvalidArgument as error:
        raise InvalidArgumentError(str(error)) from None


def call(op: Any, *args: Any) -> Any:
    """Call an operator; tell what it refuses as InvalidArgumentError, and new choices to the log."""
    if torch.compiler.is_compiling():
        return op(*args)
    try:
        y = op(*args)
    except (RuntimeError, C.InvalidArgument) as error:  # the latter from torch 2.14 on
        if str(error).startswith(_REFUSALS):
            raise InvalidArgumentError(str(error)) from None
        raise
    if logger.isEnabledFor(logging.DEBUG):
        for choice in C.take_new_choices():
            logger.debug("%s", choice)
    return y
