"""What the operators mean, in float64, and how far from it a kernel may be.

A sum of n products in float32 differs from the exact one by about sqrt(n)·eps·Σ|a||b| (rounding errors are of
either sign; Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019); storing it as
bfloat16 adds half a unit in the last place. A kernel may be that wrong, or twice as wrong as PyTorch's own kernel,
whichever is more. Winograd's transforms round as well: its error as a whole (norm-wise) may be three times that of
oneDNN's channels-last kernels, which PyTorch takes for all but the smallest convolutions, and 1e-5. Where what it
multiplies is bfloat16, the rounding of both factors is what counts, 2⁻⁹ each, which the last transform enlarges:
then the error as a whole may be 1/64.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyserve.kernels import VariantInfo
from tests.kernels.cases import Case

WINOGRAD = ("winograd", "polyphase", "stem")  # algorithms whose transforms round
BOUNDS = {"none": (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
_SUM_EPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-23, torch.float16: 2.0**-23, torch.float64: 2.0**-52}
_STORE_EPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float64: 2.0**-52}
_LEAST = {torch.float16: 2.0**-24}  # float16 has no exponents for what is smaller
_PAIRS_NORM = 2.0**-6
_SHORT_SUM = 3e-7  # relative error of a few hundred products' sum; the ratio of two smaller ones tells nothing


def rounds_factors(variant: VariantInfo) -> bool:
    """Whether what it multiplies is rounded to bfloat16, once transformed."""
    return variant.algorithm in WINOGRAD and variant.needs == "avx512_bf16"


@dataclass
class Expected:
    """A float64 result and the error that its computation in a dtype may have."""

    value: Tensor
    allowed: Tensor

    def check_norm(self, got: Tensor, onednns: Tensor) -> None:
        """Fail where the error of `got` as a whole is more than three times oneDNN's, or 1e-5; or any is NaN."""
        assert got.shape == self.value.shape, f"got {list(got.shape)}, expected {list(self.value.shape)}"
        norm = self.value.norm()
        ours, theirs = (float((y.detach().cpu().double() - self.value).norm() / norm) for y in (got, onednns))
        allowed = min(1e-5, 3 * max(_SHORT_SUM, theirs))  # PyTorch's own may be NaN where no tap reads the image
        assert ours <= allowed, f"relative error {ours:.3g}, oneDNN's {theirs:.3g}, allowed {allowed:.3g}"

    def check_pairs_norm(self, got: Tensor) -> None:
        """Fail where the error of `got` as a whole is more than 1/64; or any is NaN."""
        assert got.shape == self.value.shape, f"got {list(got.shape)}, expected {list(self.value.shape)}"
        error = float((got.detach().cpu().double() - self.value).norm() / self.value.norm())
        assert error <= _PAIRS_NORM, f"relative error {error:.3g}, allowed {_PAIRS_NORM:.3g}"

    def check(self, got: Tensor, torchs_own: Tensor | None = None) -> None:
        """Fail where any value of `got` is too far off, also where it is NaN."""
        assert got.shape == self.value.shape, f"got {list(got.shape)}, expected {list(self.value.shape)}"
        error = (got.detach().cpu().double() - self.value).abs()
        allowed = self.allowed
        if torchs_own is not None and torchs_own.numel():
            own = float((torchs_own.detach().cpu().double() - self.value).abs().max())
            if math.isfinite(own):  # PyTorch's own may be NaN where no tap reads the image: then our bound alone
                allowed = allowed.clamp(min=2 * own)
        good = error <= allowed
        worst = float((error / allowed).nan_to_num(math.inf).max()) if error.numel() else 0.0
        assert bool(good.all()), (
            f"{int((~good).sum())} of {good.numel()} values off, up to {worst:.3g} × the bound"
        )


def sum_bound(value: Tensor, magnitude: Tensor, terms: int, dtype: torch.dtype) -> Tensor:
    """The allowed error of a sum of `terms` products whose absolute values add up to `magnitude`."""
    return (
        (math.sqrt(terms) + 2) * _SUM_EPS[dtype] * magnitude
        + _STORE_EPS[dtype] * value.abs()
        + _LEAST.get(dtype, 1e-40)
    )


def clamp(value: Tensor, activation: str) -> Tensor:
    """The activation; NaN stays NaN."""
    return value.clamp(*BOUNDS[activation])


@dataclass
class Tensors:
    """The inputs of one case, in the dtype under test."""

    case: Case
    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor
    grad: Tensor

    @classmethod
    def random(cls, case: Case, dtype: torch.dtype, *, post_relu: bool, device: str = "cpu") -> Tensors:
        """Standard normal values; `post_relu` makes x what a ReLU leaves: half zeros, the rest positive."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{case} {dtype}".encode()))

        def normal(*sizes: int) -> Tensor:
            values = torch.randn(*sizes, generator=generator, dtype=torch.float64)
            return values.to(dtype).to(device)

        x = normal(case.N, case.C, case.H, case.W)
        weight = normal(case.K, case.C // case.groups, case.R, case.S)
        if dtype is torch.bfloat16:  # so that kernels meet both layouts that they take
            weight = weight.contiguous(memory_format=torch.channels_last)
        out = F.conv2d(x.cpu().double(), weight.cpu().double(), None, *_numbers(case)).shape
        x = x.relu() if post_relu else x
        return cls(case, x, weight, normal(case.K), normal(*out), normal(*out))

    def double(self) -> Tensors:
        """The same values as float64 on the CPU."""
        named = {k: v.detach().cpu().double() for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Tensors(self.case, **named)


def _numbers(case: Case) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
    return case.stride, case.padding, case.dilation, case.groups


def conv2d(x: Tensor, weight: Tensor, case: Case) -> Tensor:
    """PyTorch's convolution of a case."""
    return F.conv2d(x, weight, None, *_numbers(case))


def onednn(x: Tensor, weight: Tensor, padding: tuple[int, int], stride: tuple[int, int] = (1, 1)) -> Tensor:
    """oneDNN's channels-last convolution; PyTorch by itself has another kernel where it is small."""
    x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight))
    y: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, None, padding, stride, [1, 1], 1, "none", [], None
    )
    return y


def onednn_gradient(grad: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """The gradient of x, which is a convolution with the filters turned."""
    turned = weight.flip(2, 3).transpose(0, 1)
    return onednn(grad, turned, (weight.shape[2] - 1 - padding[0], weight.shape[3] - 1 - padding[1]))


def gradients(grad: Tensor, x: Tensor, weight: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """PyTorch's gradients of x and weight."""
    stride, padding, dilation, groups = _numbers(case)
    arguments = (stride, padding, dilation, False, (0, 0), groups, (True, True, False))
    dx, dw, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *arguments)
    return dx, dw


def expected_forward(t: Tensors, activation: str) -> Expected:
    """clamp(conv(x, weight) + bias + residual)."""
    d, case = t.double(), t.case
    bias = d.bias.view(1, -1, 1, 1)
    value = conv2d(d.x, d.weight, case) + bias + d.residual
    magnitude = conv2d(d.x.abs(), d.weight.abs(), case) + bias.abs() + d.residual.abs()
    terms = case.C // case.groups * case.R * case.S + 2
    return Expected(clamp(value, activation), sum_bound(value, magnitude, terms, t.x.dtype))


def expected_pooled(t: Tensors, pool: tuple[int, int, int], activation: str) -> Expected:
    """Max pooling (size, stride, padding) of clamp(conv(x, weight) + bias); NaN where PyTorch's has NaN.

    A maximum is as wrong as the values it is taken from at most.
    """
    whole = dataclasses.replace(t, residual=torch.zeros_like(t.residual))
    plain = expected_forward(whole, activation)
    return Expected(*(F.max_pool2d(value, *pool) for value in (plain.value, plain.allowed)))


def masked(grad: Tensor, y: Tensor, activation: str) -> Tensor:
    """The gradient that the activation lets through, seen in its output y."""
    lo, hi = BOUNDS[activation]
    blocked = torch.zeros_like(y, dtype=torch.bool)
    if lo > -math.inf:
        blocked |= y <= lo
    if hi < math.inf:
        blocked |= y >= hi
    return grad.masked_fill(blocked, 0)


def expected_backward(t: Tensors, y: Tensor, activation: str) -> tuple[Expected, Expected, Expected, Tensor]:
    """The gradients of x, weight and bias, and (exactly) of the residual."""
    d, case, dtype = t.double(), t.case, t.x.dtype
    grad = masked(d.grad, y.detach().cpu().double(), activation)
    dx, dw = gradients(grad, d.x, d.weight, case)
    dx_magnitude, dw_magnitude = gradients(grad.abs(), d.x.abs(), d.weight.abs(), case)
    positions = grad.shape[0] * grad.shape[2] * grad.shape[3]
    db, db_magnitude = grad.sum((0, 2, 3)), grad.abs().sum((0, 2, 3))
    return (
        Expected(dx, sum_bound(dx, dx_magnitude, case.K // case.groups * case.R * case.S, dtype)),
        Expected(dw, sum_bound(dw, dw_magnitude, positions, dtype)),
        Expected(db, sum_bound(db, db_magnitude, positions, dtype)),
        grad,
    )
