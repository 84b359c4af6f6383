"""Plans: what a chain of layers does for one set of input sizes, as the program that `csrc/chain.h` describes.

Sizes and life times of all values are known before the first layer runs, so that their memory is planned once, and
the weights are packed once for the kernels that will be taken.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from pyserve.kernels._extension import C
from pyserve.kernels.calls import BOUNDS
from pyserve.kernels.pooled import Window, pooled_size
from pyserve.kernels.steps import Pair, Step, Steps

_ALIGNMENT = 64
_CACHED_BYTES = 1 << 20  # a usual L2 cache: what the images that a layer takes at a time may have
_PLACES = ("input", "output", "workspace")  # csrc/chain.h: Place
_KINDS = ("conv2d", "max_pool2d", "average_pool2d", "linear", "bias_relu", "flatten")  # csrc/chain.h: StepKind
_DTYPES = (torch.float32, torch.bfloat16)  # csrc/conv2d.h: DType


_NO_POOL = (0, 0, 0)
_Program = tuple[int, int, list[int], list[int]]


class CannotPlanError(Exception):
    """Sizes or types that the chain's layers do not take; PyTorch may, or tells what is wrong with them."""


class Weights(NamedTuple):
    """Of one layer."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Plan:
    """What `torch.ops.pyserve.run_chain` takes beside the inputs."""

    program: Tensor  # int64
    constants: list[Tensor]
    workspace_bytes: int


@dataclass
class Value:
    """Sizes of a value, N, H, W, C, and where it lives."""

    sizes: tuple[int, int, int, int]
    dims: int  # 4, or 2 where H and W are one
    place: str = "workspace"
    at: int = 0  # its number among those of its place, or its offset
    first: int = 0  # the step that makes it, and
    last: int = 0  # the last that reads it

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)


def make_plan(steps: Steps, weights: Sequence[Weights], inputs: Sequence[Any], packed: dict[Any, Tensor]) -> Plan:
    """Plan a chain.

    Args:
        steps: its layers.
        weights: of those that have some, in order.
        inputs: tensors of the sizes and the element type to plan for.
        packed: packed weights by layer and layout, shared by the plans of a chain; what is missing is added.

    Raises:
        CannotPlanError: its layers do not take such inputs.
    """
    return _Planner(steps, weights, inputs, packed).plan()


class _Planner:
    def __init__(
        self, steps: Steps, weights: Sequence[Weights], inputs: Sequence[Any], packed: dict[Any, Tensor]
    ) -> None:
        self.steps = steps.steps
        self.outputs = steps.outputs
        with_weights = (i for i, step in enumerate(self.steps) if step.module is not None)
        self.weights = dict(zip(with_weights, weights, strict=True))
        self.packed = packed
        self.dtype = inputs[0].dtype
        self.constants: list[Tensor] = []
        self.values = {i: self._input(x, i) for i, x in enumerate(inputs)}
        self.merged: set[int] = set()  # steps that the one before them does as well
        batches = {value.sizes[0] for value in self.values.values()}
        self.images = batches.pop() if len(batches) == 1 else 1
        self.at_a_time: list[int] = []  # images that each step takes at a time

    def plan(self) -> Plan:
        program = [self._step(i, step) for i, step in enumerate(self.steps) if i not in self.merged]
        for i, number in enumerate(self.outputs):
            self.values[number].place, self.values[number].at = "output", i
        self._part_values()
        size_bytes = place_values(list(self.values.values()), self.dtype.itemsize)
        position = {number: i for i, number in enumerate(self.values)} | {-1: -1}
        header = [_DTYPES.index(self.dtype), self.images, size_bytes, len(self.values), len(program)]
        values = [[_PLACES.index(v.place), v.at, v.dims, *v.sizes] for v in self.values.values()]
        steps = [
            [kind, images, len(operands) + len(words), *(position[number] for number in operands), *words]
            for kind, images, operands, words in program
        ]
        words = [*header, *(word for part in values + steps for word in part)]
        return Plan(torch.tensor(words, dtype=torch.int64), self.constants, size_bytes)

    # -------------------------------------------------------- values

    def _input(self, x: Any, number: int) -> Value:
        if not isinstance(x, Tensor) or x.dtype is not self.dtype or x.dim() not in (2, 4) or not x.numel():
            raise CannotPlanError
        n, c, h, w = (*x.shape, 1, 1)[:4]
        return Value((n, h, w, c), x.dim(), "input", number)

    def _step(self, i: int, step: Step) -> _Program:
        """A step's kind, how many images it takes at a time, the numbers of its values, and its other words.

        What it makes is a value from now on.
        """
        x = self.values[step.x]
        self._take_images(i, x)
        make: Callable[[int, Step, Value], tuple[Value, list[int]]] = getattr(self, f"_{step.kind}")
        y, words = make(i, step, x)
        if min(y.sizes) < 1:
            raise CannotPlanError
        operands = [step.x, self.steps[i + 1].y if i + 1 in self.merged else step.y]
        if step.kind in ("conv2d", "bias_relu"):
            operands.append(step.residual)
            if step.residual >= 0 and self.values[step.residual].sizes != y.sizes:
                raise CannotPlanError
        for number in (step.x, step.residual):
            if number >= 0:
                self.values[number].last = i
        y.first = y.last = i
        self.values[operands[1]] = y
        return _KINDS.index(step.kind), self.at_a_time[i], operands, words

    def _next(self, i: int, kind: str) -> Step | None:
        """The step after i, if it is of this kind, and the only one that wants what step i makes."""
        following = self.steps[i + 1] if i + 1 < len(self.steps) else None
        if following is None or following.kind != kind or following.residual >= 0:
            return None
        y = self.steps[i].y
        readers = sum((step.x == y) + (step.residual == y) for step in self.steps)
        return following if following.x == y and readers == 1 and y not in self.outputs else None

    # -------------------------------------------------------- parts of the images

    def _take_images(self, i: int, x: Value) -> None:
        """How many images step i takes at a time: as many as the caches hold the maps of, later steps no fewer."""
        before = self.at_a_time[-1] if self.at_a_time else 1
        room = _CACHED_BYTES * self.images // (x.numel * self.dtype.itemsize)
        wanted = max(before, min(room, self.images))
        taken = next(n for n in range(wanted, 0, -1) if self.images % n == 0)
        self.at_a_time += [taken] * (i + 1 - len(self.at_a_time))

    def _part_values(self) -> None:
        """Make values that only steps with the same parts see as large as a part.

        The others live as long as all of those steps, which run again and again.
        """
        for value in self.values.values():
            first, last = (self.at_a_time[i] for i in (value.first, value.last))
            if value.place == "workspace" and first == last:
                value.sizes = (first * value.sizes[0] // self.images, *value.sizes[1:])
            else:
                value.first = self.at_a_time.index(first)
                value.last = len(self.at_a_time) - 1 - self.at_a_time[::-1].index(last)

    # -------------------------------------------------------- layers

    def _conv2d(self, i: int, step: Step, x: Value) -> tuple[Value, list[int]]:
        conv = cast("nn.Conv2d", step.module)
        n, h, w, c = x.sizes
        weight, bias = self.weights[i]
        stride, padding, dilation = step.stride, step.padding, cast("Pair", conv.dilation)
        if x.dims != 4 or c != conv.in_channels or weight.dtype is not self.dtype:
            raise CannotPlanError
        kernel = (weight.shape[2], weight.shape[3])
        spans = [d * (r - 1) + 1 for d, r in zip(dilation, kernel, strict=True)]
        p, q = (
            (size + 2 * pad - span) // step_ + 1
            for size, pad, span, step_ in zip((h, w), padding, spans, stride, strict=True)
        )
        if p < 1 or q < 1:
            raise CannotPlanError
        numbers = (list(stride), list(padding), list(dilation), conv.groups)
        variant, packed, pool = self._kernel(i, weight, [n * self.at_a_time[i] // self.images, c, h, w], numbers)
        if pool[0]:
            p, q = (pooled_size(size, *pool) for size in (p, q))
        words = [
            self._constant(weight.permute(0, 2, 3, 1)),
            self._constant(packed),
            self._constant(bias),
            variant,
            *kernel,
            *stride,
            *padding,
            *dilation,
            conv.groups,
            *pool,
            *_bits(step.activation),
        ]
        return Value((n, p, q, conv.out_channels), 4), words

    def _kernel(self, i: int, weight: Tensor, x: list[int], numbers: Any) -> tuple[int, Tensor | None, Window]:
        """The variant that will be taken, the weights as it wants them, and the pooling that it does as well."""
        name = str(self.dtype).removeprefix("torch.")
        choice: Any = partial(C.conv2d_choice, (x, name, "cpu"), (list(weight.shape), name, "cpu"), *numbers)
        pool = self._pool_after(i)
        variant, layout = choice(pool)
        if variant < 0:
            pool = _NO_POOL
            variant, layout = choice(pool)
        if pool != _NO_POOL:
            self.merged.add(i + 1)
        if layout < 0:
            return variant, None, pool
        key = (i, variant, layout)
        if key not in self.packed:
            self.packed[key] = torch.ops.pyserve.conv2d_pack(weight, variant, x, *numbers)
        return variant, self.packed[key], pool

    def _pool_after(self, i: int) -> Window:
        """The window of a max pooling that nobody else stands before; zeros for none."""
        pool = self._next(i, "max_pool2d") if self.steps[i].residual < 0 else None
        return (pool.window if pool is not None else None) or _NO_POOL

    def _max_pool2d(self, i: int, step: Step, x: Value) -> tuple[Value, list[int]]:
        n, h, w, c = x.sizes
        p, q = map(pooled_size, (h, w), step.kernel, step.stride, step.padding)
        if x.dims != 4 or any(2 * pad > kernel for pad, kernel in zip(step.padding, step.kernel, strict=True)):
            raise CannotPlanError
        return Value((n, p, q, c), 4), [*step.kernel, *step.stride, *step.padding]

    def _average_pool2d(self, i: int, step: Step, x: Value) -> tuple[Value, list[int]]:
        n, h, w, c = x.sizes
        p, q = (size if wanted is None else wanted for size, wanted in zip((h, w), step.sizes, strict=True))
        if x.dims != 4:
            raise CannotPlanError
        return Value((n, p, q, c), 4), []

    def _linear(self, i: int, step: Step, x: Value) -> tuple[Value, list[int]]:
        weight, bias = self.weights[i]
        if x.dims != 2 or x.sizes[3] != weight.shape[1] or weight.dtype is not self.dtype:
            raise CannotPlanError
        relu = self._next(i, "bias_relu")
        if relu is not None:
            self.merged.add(i + 1)
        words = [self._constant(weight), self._constant(bias), *_bits((relu or step).activation)]
        return Value((x.sizes[0], 1, 1, weight.shape[0]), 2), words

    def _bias_relu(self, i: int, step: Step, x: Value) -> tuple[Value, list[int]]:
        return Value(x.sizes, x.dims), _bits(step.activation)

    def _flatten(self, i: int, step: Step, x: Value) -> tuple[Value, list[int]]:
        n, h, w, c = x.sizes
        return Value((n, 1, 1, h * w * c), 2), []

    def _constant(self, tensor: Tensor | None) -> int:
        """The number of a constant; −1 for none."""
        if tensor is None:
            return -1
        if not tensor.is_cpu:
            raise CannotPlanError
        self.constants.append(tensor.contiguous())
        return len(self.constants) - 1


def place_values(values: Sequence[Value], itemsize: int) -> int:
    """Give every value of the workspace an offset, such that no two that live at once overlap; bytes in all.

    Largest first, each into the lowest gap: Pisarchyk and Lee, "Efficient memory management for deep neural net
    inference", 2020.
    """
    placed: list[tuple[int, int, Value]] = []
    for value in sorted((v for v in values if v.place == "workspace"), key=lambda v: -v.numel):
        size = -(-value.numel * itemsize // _ALIGNMENT) * _ALIGNMENT
        at = 0
        for begin, end, other in sorted(placed, key=lambda entry: entry[0]):
            alive_together = value.first <= other.last and other.first <= value.last
            if alive_together and begin < at + size and at < end:
                at = end
        value.at = at
        placed.append((at, at + size, value))
    return max((end for _, end, _ in placed), default=0)


def _bits(activation: str) -> list[int]:
    """The bounds of an activation as words that hold doubles."""
    return list(struct.unpack("<2q", struct.pack("<2d", *BOUNDS[activation])))
