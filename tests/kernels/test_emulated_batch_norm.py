"""batch_norm_relu's CUDA kernels, run on the CPU through the emulator, against float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels import emulation, reference
from tests.kernels.emulation import ORDERINGS, Emulator
from tests.kernels.support import DTYPES
from tests.kernels.test_emulated import zeros

EPS = 1e-5
SIZES = [(2, 1), (300, 33), (70, 64), (1, 8), (9000, 5), (513, 264), (40, 1024), (3000, 24), (1200, 72)]
CASES = [(dtype, way) for dtype in DTYPES for way in ("relu", "relu6", "none")]


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return emulation.build()


def inputs(sizes: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    """Values with a mean of their own in each channel, some of them far from zero."""
    torch.manual_seed(0)
    rows, channels = sizes
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    offset = 8 * torch.randn(channels, dtype=torch.float64)
    return {
        "x": (torch.randn(rows, channels, dtype=torch.float64) + offset).to(dtype),
        "weight": torch.randn(channels, dtype=wide),
        "bias": torch.randn(channels, dtype=wide),
        "residual": torch.randn(rows, channels, dtype=torch.float64).to(dtype),
        "grad": torch.randn(rows, channels, dtype=torch.float64).to(dtype),
    }


def normalised(t: dict[str, Tensor], mean: Tensor, var: Tensor) -> Tensor:
    return (t["x"].double() - mean) * (var + EPS).rsqrt() * t["weight"].double() + t["bias"].double()


def close(got: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    """Within a few units in the last place of the largest value; NaN fails."""
    unit = {torch.float64: 2.0**-45, torch.float32: 2.0**-17, torch.float16: 2.0**-9}.get(dtype, 2.0**-6)
    bound = scale * unit * (1 + float(expected.abs().max()))
    assert bool(((got.double() - expected).abs() <= bound).all()), float((got.double() - expected).abs().max())


@pytest.mark.parametrize("training", [True, False], ids=["training", "given"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_forward_and_backward(emulator: Emulator, sizes: tuple[int, int], training: bool) -> None:
    for i, (dtype, activation) in enumerate(CASES):
        t, ordering = inputs(sizes, dtype), ORDERINGS[i % 2]
        wide, x = t["weight"].dtype, t["x"].double()
        mean, var = x.mean(0), x.var(0, correction=0)
        if not training:
            mean, var = torch.randn(sizes[1]).double(), torch.rand(sizes[1]).double() + 0.5
        y = emulation.poisoned_like(t["x"])
        found = [
            torch.full((sizes[1],), float("nan"), dtype=wide) if training else v.to(wide) for v in (mean, var)
        ]
        problem = emulation.batch_norm_problem(t["x"], activation, training=training, eps=EPS)
        residual = t["residual"] if i % 3 else None
        emulator.run(
            "batch_norm_relu_simt_cuda",
            problem,
            [t["x"], t["weight"], t["bias"], residual],
            [y, *found],
            ordering,
        )
        expected = normalised(t, mean, var) + (0 if residual is None else residual.double())
        close(y, reference.clamp(expected, activation), dtype)
        close(found[0], mean, wide)
        close(found[1], var, wide)
        seen = None if activation == "none" or residual is None else y
        check_backward(emulator, t, y, seen, found, activation, training=training, ordering=ordering)


def check_backward(
    emulator: Emulator,
    t: dict[str, Tensor],
    y: Tensor,
    seen: Tensor | None,
    found: list[Tensor],
    activation: str,
    *,
    training: bool,
    ordering: str,
) -> None:
    """The gradients of what the forward pass gave, by the textbook's formula in float64.

    The kernel sees the activation's mask in `seen`, or finds it again from x.
    """
    dx, dresidual = emulation.poisoned_like(y), emulation.poisoned_like(y)
    dweight, dbias = (torch.full_like(t["weight"], float("nan")) for _ in range(2))
    emulator.run(
        "batch_norm_relu_backward_simt_cuda",
        emulation.batch_norm_problem(t["x"], activation, training=training, eps=EPS),
        [t["grad"], seen, t["x"], t["weight"], t["bias"], *found],
        [dx, dweight, dbias, dresidual],
        ordering,
    )
    mean, inv_std = found[0].double(), (found[1].double() + EPS).rsqrt()
    g = reference.masked(t["grad"].double(), y.double(), activation)
    x_hat = (t["x"].double() - mean) * inv_std
    expected = t["weight"].double() * inv_std * g
    if training:
        expected = t["weight"].double() * inv_std * (g - g.mean(0) - x_hat * (g * x_hat).mean(0))
    assert torch.equal(dresidual.double(), g)
    close(dbias, g.sum(0), t["weight"].dtype)
    close(dweight, (g * x_hat).sum(0), t["weight"].dtype)
    close(dx, expected, y.dtype)


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_what_is_not_given_or_not_wanted(emulator: Emulator, ordering: str) -> None:
    """No weight, no bias, no residual; of the gradients that of x alone."""
    t = inputs((300, 33), torch.float32)
    y, mean, var = emulation.poisoned_like(t["x"]), torch.full((33,), math.nan), torch.full((33,), math.nan)
    problem = emulation.batch_norm_problem(t["x"], "relu", training=True, eps=EPS)
    forward, backward = "batch_norm_relu_simt_cuda", "batch_norm_relu_backward_simt_cuda"
    emulator.run(forward, problem, [t["x"], None, None, None], [y, mean, var], ordering)
    x = t["x"].double().requires_grad_()
    expected = F.relu(F.batch_norm(x, None, None, training=True, eps=EPS))
    close(y, expected.detach(), torch.float32)
    dx = emulation.poisoned_like(y)
    given = [t["grad"], None, t["x"], None, None, mean, var]
    emulator.run(backward, problem, given, [dx, None, None, None], ordering)
    close(dx, torch.autograd.grad(expected, x, t["grad"].double())[0], torch.float32)


def test_more_than_32_bits_of_elements(emulator: Emulator) -> None:
    """The first and the last rows of more than 2³¹ numbers, forward and backward, with given statistics."""
    rows, channels = 2**28 + 1000, 8
    x, grad, y, dx, dresidual = (zeros(rows, channels) for _ in range(5))
    assert x.numel() > 2**31
    ends = torch.cat([torch.arange(40), torch.arange(rows - 40, rows)])
    x[ends], grad[ends] = (torch.randn(80, channels).to(torch.bfloat16) for _ in range(2))
    mean, var = torch.randn(channels), torch.rand(channels) + 0.5
    problem = emulation.batch_norm_problem(x, "relu", training=False, eps=0.0)
    emulator.run(
        "batch_norm_relu_simt_cuda", problem, [x, None, None, None], [y, mean, var], "early", sampled=True
    )
    expected = ((x[ends].double() - mean.double()) * var.double().rsqrt()).relu()
    close(y[ends], expected, torch.bfloat16)
    given, dbias = [grad, None, x, None, None, mean, var], torch.zeros(channels)
    outputs = [dx, None, dbias, dresidual]
    emulator.run("batch_norm_relu_backward_simt_cuda", problem, given, outputs, "late", sampled=True)
    g = reference.masked(grad[ends].double(), y[ends].double(), "relu")
    assert torch.equal(dresidual[ends].double(), g)
    close(dx[ends], g * var.double().rsqrt(), torch.bfloat16)
