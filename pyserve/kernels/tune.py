"""The tuner: measures the variants that take the convolutions of usual networks, and keeps which was the fastest.

Forward as in prediction, with weights packed before and an activation; gradients as in training. Variants
alternate in single calls, each after other memory was written, as within a network. A variant other than the first
of the list must be clearly faster, and be so in a second measurement, to be kept: noise shall change no choice.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyserve.kernels._extension import C
from pyserve.kernels.choices import Table, cpu_name
from pyserve.kernels.fuse import fuse

_OPS = ("conv2d", "conv2d_dgrad", "conv2d_wgrad")
_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
_CLEARLY = 0.95  # of the first variant's time
_HOPELESS = 1.5  # times the best's time at first sight
_ROUNDS = 7
_MOST_PRODUCTS = 3e9  # in one call: larger problems choose as these do
_FLUSHED_BYTES = 64 << 20


@dataclass(frozen=True)
class Layer:
    """A convolution of square images."""

    channels: int
    filters: int
    size: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1

    @property
    def outputs(self) -> int:
        """Positions of one image's output."""
        return ((self.size - 1) // self.stride + 1) ** 2

    def products(self, N: int) -> float:
        """Of a call."""
        return N * self.outputs * self.kernel**2 * self.channels * self.filters / self.groups


def _dense(kernel: int, stride: int, *sizes: tuple[int, int, int]) -> list[Layer]:
    return [Layer(*size, kernel, stride) for size in sizes]


def _depthwise(*sizes: tuple[int, int, int]) -> list[Layer]:
    return [Layer(C_, C_, size, 3, stride, C_) for C_, size, stride in sizes]


# Of ResNets for large and for CIFAR-10's images, VGG, MobileNetV2.
LAYERS = [
    *_dense(3, 1, (64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7)),
    *_dense(3, 1, (64, 64, 112), (64, 128, 56), (128, 256, 28), (256, 512, 14), (512, 512, 14)),
    *_dense(3, 1, (16, 16, 32), (32, 32, 16), (64, 64, 8), (128, 128, 16), (256, 256, 8), (512, 512, 4)),
    *_dense(3, 1, (3, 16, 32), (3, 32, 32), (3, 64, 32), (3, 64, 224)),
    *_dense(3, 2, (64, 128, 56), (128, 256, 28), (256, 512, 14), (16, 32, 32), (32, 64, 16), (3, 32, 224)),
    *_dense(7, 2, (3, 64, 224)),
    *_dense(1, 1, (64, 64, 56), (64, 256, 56), (256, 64, 56), (256, 128, 56), (128, 512, 28), (512, 128, 28)),
    *_dense(1, 1, (512, 256, 28), (256, 1024, 14), (1024, 256, 14), (1024, 512, 14), (512, 2048, 7)),
    *_dense(1, 1, (2048, 512, 7), (32, 16, 112), (16, 96, 112), (96, 24, 56), (24, 144, 56), (144, 32, 28)),
    *_dense(1, 1, (32, 192, 28), (384, 64, 14), (64, 384, 14), (576, 96, 14), (96, 576, 14), (960, 160, 7)),
    *_dense(1, 1, (320, 1280, 7)),
    *_dense(1, 2, (64, 128, 56), (128, 256, 28), (256, 512, 14), (256, 512, 56), (512, 1024, 28)),
    *_dense(1, 2, (1024, 2048, 14)),
    *_depthwise((32, 112, 1), (96, 112, 2), (144, 56, 1), (144, 56, 2), (192, 28, 1), (384, 14, 1), (576, 14, 2)),
    *_depthwise((960, 7, 1)),
]


@dataclass(frozen=True)
class Problem:
    """One call to measure."""

    op: str
    dtype: str
    layer: Layer
    N: int

    def told(self) -> tuple[Any, ...]:
        """As `_C` wants to be told of it."""
        layer = self.layer
        name = str(_DTYPES[self.dtype]).removeprefix("torch.")
        x = [self.N, layer.channels, layer.size, layer.size]
        weight = [layer.filters, layer.channels // layer.groups, layer.kernel, layer.kernel]
        numbers = ([layer.stride] * 2, [layer.kernel // 2] * 2, [1, 1], layer.groups)
        return (x, name, "cpu"), (weight, name, "cpu"), *numbers

    def problem_class(self) -> str:
        """As a row of a table begins."""
        return str(C.conv2d_explain(self.op, *self.told())[2])

    def candidates(self) -> list[str]:
        """The vector variants that take it, the list's first choice first."""
        isas = C.isa_names()[1 : C.isa_names().index(C.isa_in_use()) + 1]
        return [
            name
            for name, op, needs in ((str(row["name"]), row["op"], row["needs"]) for row in C.variants())
            if op == self.op and needs in isas and C.conv2d_covers(name, *self.told())
        ]

    def call(self) -> Callable[[], object]:
        """Runs it, on random values."""
        layer = self.layer
        (sizes, *_), (weight_sizes, *_), stride, padding, dilation, groups = self.told()
        x = torch.randn(sizes).to(_DTYPES[self.dtype], memory_format=torch.channels_last)
        if self.op == "conv2d":
            conv = nn.Conv2d(layer.channels, layer.filters, layer.kernel, layer.stride, padding, groups=groups)
            return partial(fuse(nn.Sequential(conv, nn.ReLU()).to(x.dtype).eval(), inference=True), x)
        weight = torch.randn(weight_sizes).to(x.dtype)
        grad = torch.randn_like(torch.conv2d(x, weight, None, stride, padding, dilation, groups))
        wanted = [self.op == "conv2d_dgrad", self.op == "conv2d_wgrad", False, False]
        backward: Any = torch.ops.pyserve.conv2d_backward
        numbers = (stride, padding, dilation, groups, -math.inf, math.inf)
        return partial(backward, grad, None, x, weight, *numbers, wanted)


def problems(dtypes: tuple[str, ...] = tuple(_DTYPES)) -> list[Problem]:
    """What is measured: one problem for each class that has a choice."""
    found: dict[str, Problem] = {}
    for dtype in dtypes:
        for op in _OPS:
            for layer in LAYERS:
                for N in (1, 8) if op == "conv2d" else (8, 32):
                    problem = Problem(op, dtype, layer, N)
                    image = op == "conv2d_dgrad" and layer.channels == 3  # whose gradient nobody wants
                    if not image and layer.products(N) <= _MOST_PRODUCTS and len(problem.candidates()) > 1:
                        found.setdefault(problem.problem_class(), problem)
    return list(found.values())


def fastest(problem: Problem, rounds: int = _ROUNDS) -> tuple[str, dict[str, float]]:
    """The variant to take, and the median seconds of all that were worth measuring."""
    candidates = problem.candidates()
    first = candidates[0]
    try:
        with torch.no_grad():
            call = problem.call()
            times = _worth_measuring(call, candidates)
            _alternate(call, times, rounds if len(times) > 1 else 0)
            winner = min(times, key=lambda name: statistics.median(times[name]))
            if winner != first and _clearly_faster(times[winner], times[first]):
                _alternate(call, {name: times[name] for name in (first, winner)}, 2 * rounds)
    finally:
        C.prefer_variant("")
    medians = {name: statistics.median(found) for name, found in times.items()}
    return (winner if _clearly_faster(times[winner], times[first]) else first), medians


def _worth_measuring(call: Callable[[], object], candidates: list[str]) -> dict[str, list[float]]:
    """Two times of each variant that is not hopeless, after a call that prepares it; the list's first always."""
    once = {name: [_seconds(name, call) for _ in range(3)][1:] for name in candidates}
    most = _HOPELESS * min(min(found) for found in once.values())
    return {name: found for name, found in once.items() if name == candidates[0] or min(found) < most}


def _alternate(call: Callable[[], object], times: dict[str, list[float]], rounds: int) -> None:
    """Add times of calls in turns."""
    for _ in range(rounds):
        for name, found in times.items():
            found.append(_seconds(name, call))


def _clearly_faster(times: list[float], others: list[float]) -> bool:
    """Usually and at best: what disturbs a few calls on a busy machine moves one of these."""
    return all(of(times) < _CLEARLY * of(others) for of in (statistics.median, min))


def row(problem: Problem, variant: str) -> str:
    """A row of a table."""
    return f"{problem.problem_class()}, {variant.removeprefix(f'{problem.op}_')}"


def table_of(rows: list[str]) -> Table:
    """A table of this machine."""
    return Table(cpu_name(), (C.isa_in_use(),), tuple(rows))


_other: list[Tensor] = []


def _seconds(variant: str, call: Callable[[], object]) -> float:
    """Of one call of a variant, with cold caches."""
    if not _other:
        _other.append(torch.zeros(_FLUSHED_BYTES // 4))
    C.prefer_variant(variant)
    _other[0].add_(1)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
