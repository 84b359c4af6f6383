"""The layers that one call can run in a row, as plain data, and how graph nodes become such."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pyserve.kernels.calls import Activation
from pyserve.kernels.layers import AddReLU, Conv2d, FoldedConv2d
from pyserve.kernels.pooled import Window

Pair = tuple[int, int]


@dataclass
class Step:
    """One layer: what it does with which values, by their numbers."""

    kind: str  # conv2d, max_pool2d, average_pool2d, linear, bias_relu, flatten; alias: y is x
    x: int = -1
    y: int = -1
    residual: int = -1
    module: nn.Module | None = None  # that has the weights of a conv2d or linear
    activation: Activation = "none"
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    sizes: tuple[int | None, int | None] = (1, 1)  # of an adaptive pooling's output; None: the input's

    @property
    def window(self) -> Window | None:
        """Of a max pooling, if it is square."""
        pairs = (self.kernel, self.stride, self.padding)
        if self.kind != "max_pool2d" or any(a != b for a, b in pairs):
            return None
        return pairs[0][0], pairs[1][0], pairs[2][0]


@dataclass
class Steps:
    """Layers in order. Values are numbered: first those that come in, then one per step."""

    inputs: int
    steps: list[Step] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


def step_of(node: fx.Node, modules: dict[str, nn.Module]) -> Step | None:
    """The step that does what a node does; None where there is none."""
    if node.op == "call_module":
        return _of_module(node, modules[str(node.target)])
    if node.op == "call_function":
        return _of_function(node)
    if node.op == "call_method" and node.target == "flatten":
        return _flatten(node.args[1:], node.kwargs)
    return None


def operands(node: fx.Node) -> list[fx.Node]:
    """What a step takes: one value, or two where it adds."""
    return [arg for arg in node.args if isinstance(arg, fx.Node)]


# ------------------------------------------------------------ modules


def _of_module(node: fx.Node, module: nn.Module) -> Step | None:
    if isinstance(module, Conv2d):
        return _of_conv(node, module)
    if isinstance(module, AddReLU):
        return None if node.kwargs else Step("bias_relu", activation=module.activation)
    if len(node.args) != 1 or node.kwargs:
        return None
    if type(module) is nn.Linear:
        return Step("linear", module=module)
    if type(module) is nn.MaxPool2d:
        return _max_pool(
            module.kernel_size,
            module.stride,
            module.padding,
            plain=_is_one(module.dilation) and not module.ceil_mode and not module.return_indices,
        )
    if type(module) is nn.AdaptiveAvgPool2d:
        return _average_pool(module.output_size)
    if type(module) is nn.Flatten:
        return _flatten((module.start_dim, module.end_dim), {})
    if type(module) is nn.Identity or isinstance(module, nn.modules.dropout._DropoutNd):
        return Step("alias")  # a chain is for evaluation
    return None


def _of_conv(node: fx.Node, module: Conv2d) -> Step | None:
    if type(module) not in (Conv2d, FoldedConv2d) or module.padding_mode != "zeros":
        return None
    if set(node.kwargs) - {"activation"} or not all(isinstance(arg, fx.Node) for arg in node.args):
        return None
    if isinstance(module.padding, str):
        return None
    return Step(
        "conv2d",
        module=module,
        activation=node.kwargs.get("activation", "none"),  # type: ignore[arg-type]
        stride=_pair(module.stride),
        padding=_pair(module.padding),
    )


# ------------------------------------------------------------ functions


def _of_function(node: fx.Node) -> Step | None:
    if node.target in (operator.add, torch.add):
        both = len(node.args) == 2 and all(isinstance(arg, fx.Node) for arg in node.args)
        return Step("bias_relu") if both and not node.kwargs else None
    if node.target is torch.flatten:
        return _flatten(node.args[1:], node.kwargs)
    if node.target is F.adaptive_avg_pool2d and not node.kwargs and len(node.args) == 2:
        return _average_pool(node.args[1])
    if node.target is F.dropout and node.kwargs.get("training") is False:
        return Step("alias")
    return None


def _max_pool(kernel: Any, stride: Any, padding: Any, *, plain: bool) -> Step | None:
    step = Step("max_pool2d", kernel=_pair(kernel), stride=_pair(stride), padding=_pair(padding))
    return step if plain else None


def _average_pool(sizes: Any) -> Step | None:
    sizes = sizes if isinstance(sizes, tuple | list) else (sizes, sizes)
    if len(sizes) != 2 or not all(size is None or isinstance(size, int) for size in sizes):
        return None
    return Step("average_pool2d", sizes=(sizes[0], sizes[1]))


def _flatten(args: Any, kwargs: dict[str, Any]) -> Step | None:
    bounds = dict(zip(("start_dim", "end_dim"), args, strict=False)) | kwargs
    plain = bounds.get("start_dim", 0) == 1 and bounds.get("end_dim", -1) == -1
    return Step("flatten") if plain else None


def _pair(value: Any) -> Pair:
    return (value[0], value[1]) if isinstance(value, tuple | list) else (value, value)


def _is_one(value: Any) -> bool:
    return _pair(value) == (1, 1)
