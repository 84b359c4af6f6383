"""Which pixels a place in a layer can see: its receptive field, followed through the network's graph."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pyserve.inference.probe import Probe


@dataclass(frozen=True)
class Axis:
    """Along one axis, place p sees the pixels from p·stride + first to p·stride + last (some beyond the edge)."""

    stride: int
    first: int
    last: int

    def through(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> Axis:
        """After a window that slides over it."""
        return Axis(
            self.stride * stride,
            self.first - padding * self.stride,
            self.last + (dilation * (kernel - 1) - padding) * self.stride,
        )

    def with_other(self, other: Axis) -> Axis:
        """After an operation that joins two tensors of the same sizes."""
        return Axis(self.stride, min(self.first, other.first), max(self.last, other.last))


@dataclass(frozen=True)
class Box:
    """Pixels of the network's input: rows top…bottom and columns left…right, the second of each excluded."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class ReceptiveField:
    """Of every place of a layer; None sees the whole picture."""

    rows: Axis | None
    columns: Axis | None

    def size(self, side: int) -> tuple[int, int]:
        """Height and width in a picture of that side, pixels."""
        return _length(self.rows, side), _length(self.columns, side)

    def box(self, y: int, x: int, side: int) -> Box:
        """What a place sees, moved into the picture where it reaches beyond the edge: always of the same size."""
        top, bottom = _span(self.rows, y, side)
        left, right = _span(self.columns, x, side)
        return Box(top, left, bottom, right)


def receptive_fields(probe: Probe) -> dict[str, ReceptiveField]:
    """Of every layer of the probe.

    What the graph does is followed for convolutions, pooling, element-wise operations, slices with a step and
    concatenation; whatever else there is counts as seeing the whole picture.
    """
    graph = _Tracer().trace(probe.model)
    modules = dict(probe.model.named_modules())
    fields: dict[fx.Node, ReceptiveField] = {}
    of_layer: dict[str, ReceptiveField] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            fields[node] = ReceptiveField(Axis(1, 0, 0), Axis(1, 0, 0))
            continue
        inputs = [fields[n] for n in node.all_input_nodes if n in fields]
        fields[node] = _after(node, inputs, modules)
        for name in node.meta.get("nn_module_stack", {}):
            of_layer[name] = fields[node]  # the last node within a module is its output
    return {layer.name: of_layer.get(layer.name, _WHOLE) for layer in probe.layers}


_WHOLE = ReceptiveField(None, None)
_JOIN = (operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul, torch.cat)
_SAME: tuple[Any, ...] = (F.relu, torch.relu, F.relu6, F.silu, F.gelu, torch.sigmoid, F.dropout, F.batch_norm)
_SAME_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.LeakyReLU,
    nn.Sigmoid,
    nn.BatchNorm2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
)


class _Tracer(fx.Tracer):
    """Takes convolutions as they are, also those of our own class."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, nn.Conv2d) or super().is_leaf_module(module, qualified_name)


def _after(node: fx.Node, inputs: Sequence[ReceptiveField], modules: dict[str, nn.Module]) -> ReceptiveField:
    if not inputs:
        return _WHOLE
    if node.op == "call_module":
        return _after_module(modules[str(node.target)], inputs[0])
    if node.target in _JOIN or node.target in ("add", "add_"):
        return _joined(inputs)
    if node.target in _SAME or node.target in ("relu", "relu_", "contiguous", "clone"):
        return inputs[0]
    if node.target is operator.getitem:
        return _after_slice(node.args[1], inputs[0])
    if node.target is F.pad and _pads_channels_only(node.args[1]):
        return inputs[0]
    return _WHOLE


def _after_module(module: nn.Module, field: ReceptiveField) -> ReceptiveField:
    if isinstance(module, _SAME_MODULES):
        return field
    if isinstance(module, nn.Conv2d):
        padding = module.padding if isinstance(module.padding, tuple) else None
        windows = [
            (module.kernel_size[i], module.stride[i], padding[i], module.dilation[i]) if padding else None
            for i in (0, 1)
        ]
        return _slid(field, windows)
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        of = [
            _pair(v) for v in (module.kernel_size, module.stride, module.padding, getattr(module, "dilation", 1))
        ]
        return _slid(field, [(of[0][i], of[1][i], of[2][i], of[3][i]) for i in (0, 1)])
    return _WHOLE


def _slid(field: ReceptiveField, windows: Sequence[tuple[int, int, int, int] | None]) -> ReceptiveField:
    rows, columns = (
        axis.through(*window) if axis is not None and window is not None else None
        for axis, window in zip((field.rows, field.columns), windows, strict=True)
    )
    return ReceptiveField(rows, columns)


def _joined(inputs: Sequence[ReceptiveField]) -> ReceptiveField:
    joined = inputs[0]
    for other in inputs[1:]:
        joined = ReceptiveField(_join(joined.rows, other.rows), _join(joined.columns, other.columns))
    return joined


def _join(one: Axis | None, other: Axis | None) -> Axis | None:
    return one.with_other(other) if one is not None and other is not None and one.stride == other.stride else None


def _after_slice(index: Any, field: ReceptiveField) -> ReceptiveField:
    """x[:, :, ::2, ::2] and the like."""
    if not isinstance(index, tuple) or not all(isinstance(part, slice) for part in index):
        return _WHOLE
    steps = [*index, *[slice(None)] * (4 - len(index))][2:]
    rows, columns = (
        Axis(
            axis.stride * (s.step or 1),
            axis.first + (s.start or 0) * axis.stride,
            axis.last + (s.start or 0) * axis.stride,
        )
        if axis is not None and (s.start or 0) >= 0
        else None
        for axis, s in zip((field.rows, field.columns), steps, strict=True)
    )
    return ReceptiveField(rows, columns)


def _pads_channels_only(widths: Any) -> bool:
    return isinstance(widths, list | tuple) and not any(widths[:4])


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, tuple) else (int(value), int(value))


def _length(axis: Axis | None, side: int) -> int:
    return side if axis is None else min(axis.last - axis.first + 1, side)


def _span(axis: Axis | None, place: int, side: int) -> tuple[int, int]:
    if axis is None:
        return 0, side
    length = _length(axis, side)
    begin = min(max(place * axis.stride + axis.first, 0), side - length)
    return begin, begin + length
