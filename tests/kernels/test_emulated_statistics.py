"""The statistics that a convolution's CUDA kernels give of their output, run on the CPU, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels import emulation, reference
from tests.kernels.cases import Case, square
from tests.kernels.emulation import ORDERINGS, TILES, Emulator
from tests.kernels.reference import Tensors
from tests.kernels.test_emulated import in_tf32

CASES = [
    square(2, 24, 9, 40, 3, 1, 1),
    square(2, 3, 17, 24, 7, 2, 3),
    square(1, 5, 7, 13, 3, 1, 1),
    square(2, 32, 7, 48, 3, 1, 1, groups=2),
    square(2, 72, 9, 130, 1),
    square(3, 24, 9, 40, 1, 2),
    Case(1, 8, 1, 2, 9, 1, 1),
    Case(1, 16, 1, 65, 16, 1, 1),
]
WAYS = [
    (algorithm, case, dtype)
    for algorithm in ("mma", "pointwise")
    for case in CASES
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    if algorithm == "mma" or case.R == 1
]


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return emulation.build()


def shifted(case: Case, dtype: torch.dtype) -> Tensors:
    """Outputs whose channels have means of their own, some of them far from zero."""
    t = Tensors.random(case, dtype, post_relu=False)
    if dtype is torch.float32:
        t.x, t.weight = in_tf32(t.x), in_tf32(t.weight)
    t.bias = torch.linspace(-300, 500, case.K).to(dtype)
    t.residual = torch.zeros_like(t.residual)
    return t


def check(y: Tensor, mean: Tensor, var: Tensor) -> None:
    """The statistics are those of y as it was rounded and written, also where the mean is far from zero."""
    exact = y.double().flatten(0, -2) if y.dim() > 2 else y.double()
    expected = exact.mean(0), exact.var(0, correction=0)
    spread = expected[1].sqrt() + 1e-6 * expected[0].abs() + 1e-12
    assert bool(((mean.double() - expected[0]).abs() <= 1e-6 * spread + 2e-7 * expected[0].abs()).all())
    assert bool(((var.double() - expected[1]).abs() <= 2e-5 * spread.square()).all())


@pytest.mark.parametrize(("algorithm", "case", "dtype"), WAYS, ids=str)
def test_mean_and_variance(emulator: Emulator, algorithm: str, case: Case, dtype: torch.dtype) -> None:
    t = shifted(case, dtype)
    for ordering in ORDERINGS:
        y, mean, var = emulator.conv2d_statistics(
            f"conv2d_{algorithm}_sm80", t, ordering, tf32=dtype is torch.float32
        )
        reference.expected_forward(t, "none").check(y.permute(0, 3, 1, 2))
        check(y, mean, var)


@pytest.mark.parametrize("tile", TILES)
def test_every_tile(emulator: Emulator, tile: str) -> None:
    t = shifted(Case(2, 40, 9, 11, 136, 3, 3, padding=(1, 1)), torch.bfloat16)
    for ordering in ORDERINGS:
        check(*emulator.conv2d_statistics("conv2d_mma_sm80", t, ordering, tile=tile))


def test_more_parts_than_one_block_merges(emulator: Emulator) -> None:
    """520 tiles of rows: they are merged in two steps."""
    t = shifted(Case(1, 8, 182, 183, 16, 1, 1), torch.float16)
    check(*emulator.conv2d_statistics("conv2d_pointwise_sm80", t, "early", tile="small"))


def test_without_a_bias_and_with_nan(emulator: Emulator) -> None:
    t = shifted(square(2, 16, 9, 24, 3, 1, 1), torch.bfloat16)
    t.bias = torch.zeros_like(t.bias)
    check(*emulator.conv2d_statistics("conv2d_mma_sm80", t, "late", bias=False))
    t.weight[3] = float("nan")
    y, mean, var = emulator.conv2d_statistics("conv2d_mma_sm80", t, "early", bias=False)
    others = torch.arange(24) != 3
    assert bool(mean[3].isnan())
    assert bool(var[3].isnan())
    check(y[..., others], mean[others], var[others])
