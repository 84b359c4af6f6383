"""batch_norm_relu's CUDA kernels, run on the CPU through the emulator, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels import emulation, reference
from tests.kernels.emulation import ORDERINGS, Emulator
from tests.kernels.support import DTYPES

EPS = 1e-5
SIZES = [(2, 1), (300, 33), (70, 64), (1, 8), (9000, 5), (513, 264), (40, 1024)]
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


def normalised(t: dict[str, Tensor], mean: Tensor, inv_std: Tensor) -> Tensor:
    return (t["x"].double() - mean) * inv_std * t["weight"].double() + t["bias"].double()


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
        mean, inv_std = x.mean(0), (x.var(0, unbiased=False) + EPS).rsqrt()
        if not training:
            mean, inv_std = torch.randn(sizes[1]).double(), torch.rand(sizes[1]).double() + 0.5
        y = emulation.poisoned_like(t["x"])
        found = [
            torch.full((sizes[1],), float("nan"), dtype=wide) if training else v.to(wide) for v in (mean, inv_std)
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
        expected = normalised(t, mean, inv_std) + (0 if residual is None else residual.double())
        close(y, reference.clamp(expected, activation), dtype)
        close(found[0], mean, wide)
        check_backward(emulator, t, y, found, activation, training=training, ordering=ordering)


def check_backward(
    emulator: Emulator,
    t: dict[str, Tensor],
    y: Tensor,
    found: list[Tensor],
    activation: str,
    *,
    training: bool,
    ordering: str,
) -> None:
    """The gradients of what the forward pass gave, by the textbook's formula in float64."""
    dx, dresidual = emulation.poisoned_like(y), emulation.poisoned_like(y)
    dweight, dbias = (torch.full_like(t["weight"], float("nan")) for _ in range(2))
    seen = None if activation == "none" else y
    emulator.run(
        "batch_norm_relu_backward_simt_cuda",
        emulation.batch_norm_problem(t["x"], activation, training=training, eps=EPS),
        [t["grad"], seen, t["x"], t["weight"], *found],
        [dx, dweight, dbias, dresidual],
        ordering,
    )
    mean, inv_std = (value.double() for value in found)
    g = reference.masked(t["grad"].double(), y.double(), activation)
    x_hat = (t["x"].double() - mean) * inv_std
    expected = t["weight"].double() * inv_std * g
    if training:
        expected = t["weight"].double() * inv_std * (g - g.mean(0) - x_hat * (g * x_hat).mean(0))
    assert torch.equal(dresidual.double(), g)
    close(dbias, g.sum(0), t["weight"].dtype)
    close(dweight, (g * x_hat).sum(0), t["weight"].dtype)
    close(dx, expected, y.dtype)
