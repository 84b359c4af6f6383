"""The first layer with its max pooling: the CUDA kernel run on the CPU against float64, and bugs planted in it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels import emulation, reference
from tests.kernels.cases import POOLED, RESNETS, Case, Window, square
from tests.kernels.emulation import ORDERINGS, Emulator, Patch, nhwc
from tests.kernels.reference import Tensors
from tests.kernels.test_emulated import in_tf32
from tests.kernels.test_planted_bugs import Check, assert_noticed

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FILE = "conv2d_stem.cuh"


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return emulation.build()


def tensors(case: Case, dtype: torch.dtype) -> Tensors:
    """Standard normal values; float32 rounded to TF32, whose products are exact."""
    t = Tensors.random(case, dtype, post_relu=False)
    if dtype is torch.float32:
        t.x, t.weight = in_tf32(t.x), in_tf32(t.weight)
    return t


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("case", "pool"), [way for way in POOLED if way[0].stride == (2, 2)], ids=str)
def test_pooled_forward(emulator: Emulator, case: Case, pool: Window, dtype: torch.dtype) -> None:
    t = tensors(case, dtype)
    for ordering, activation in zip(ORDERINGS, ("relu", "none" if case.K % 2 else "relu6"), strict=True):
        expected = reference.expected_pooled(t, pool, activation)
        expected.check(emulator.conv2d_pooled(t, pool, activation, ordering))


def test_float32_is_rounded_to_tf32(emulator: Emulator) -> None:
    t = Tensors.random(square(1, 3, 20, 40, 7, 2, 3), torch.float32, post_relu=False)
    y = emulator.conv2d_pooled(t, RESNETS, "none", "early")
    t.x, t.weight = in_tf32(t.x), in_tf32(t.weight)
    reference.expected_pooled(t, RESNETS, "none").check(y)


def test_without_a_bias(emulator: Emulator) -> None:
    t = tensors(square(1, 3, 20, 40, 7, 2, 3), torch.float16)
    t.bias, given = torch.zeros_like(t.bias), t.bias
    for ordering in ORDERINGS:
        expected = reference.expected_pooled(t, RESNETS, "relu")
        expected.check(emulator.conv2d_pooled(t, RESNETS, "relu", ordering, bias=False))
        with pytest.raises(AssertionError):
            expected.check(
                emulator.conv2d_pooled(
                    Tensors(t.case, t.x, t.weight, given, t.residual, t.grad), RESNETS, "relu", ordering
                )
            )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_go_where_they_go_in_torch(emulator: Emulator, dtype: torch.dtype, value: float) -> None:
    """One pixel that is not finite: the windows that see it, and no other, know of it."""
    t = tensors(square(1, 3, 40, 20, 7, 2, 3), dtype)
    for at in ((0, 0), (13, 26), (20, 7), (39, 38)):
        t.x[0, 1, at[0], at[1]] = value
        expected = F.max_pool2d(F.conv2d(t.x.double(), t.weight.double(), t.bias.double(), 2, 3), 3, 2, 1)
        for ordering in ORDERINGS:
            got = emulator.conv2d_pooled(t, RESNETS, "none", ordering).double()
            assert torch.equal(got.isnan(), expected.isnan())
            assert torch.equal(
                got.isinf() * got.sign().nan_to_num(), expected.isinf() * expected.sign().nan_to_num()
            )


def test_the_least_values_are_pooled(emulator: Emulator) -> None:
    """Neither padding, nor what a tile computes beyond the map, is ever the largest."""
    t = tensors(square(1, 3, 33, 12, 7, 2, 3), torch.bfloat16)
    t.bias = torch.full_like(t.bias, -1000.0)
    for ordering in ORDERINGS:
        reference.expected_pooled(t, RESNETS, "none").check(emulator.conv2d_pooled(t, RESNETS, "none", ordering))
        t.bias = torch.full_like(t.bias, -math.inf)
        y = emulator.conv2d_pooled(t, RESNETS, "none", ordering)
        assert torch.equal(y, torch.full_like(y, -math.inf))
        t.bias = torch.full_like(t.bias, -1000.0)


def test_beyond_32_bit_offsets(emulator: Emulator) -> None:
    """The corners of more than 2³¹ numbers, of which only the pages that are touched take memory."""
    side = 23_200
    case, pool = Case(1, 4, side, side, 1, 2, 2, (2, 2)), (4, 4, 0)
    x = torch.from_numpy(np.zeros((1, side, side, 4), dtype=np.int16)).view(torch.bfloat16)
    assert x.numel() > 2**31
    x[0, 7, 6, 0], x[0, -1, -1, 3] = 3.0, 5.0
    weight = torch.tensor([1.0, 10.0, 100.0, 1000.0]).to(torch.bfloat16).view(1, 2, 2, 1).repeat(1, 1, 1, 4)
    y = emulation.poisoned_like(torch.empty(1, side // 8, side // 8, 1, dtype=torch.bfloat16))
    problem = emulation.conv2d_problem(case, torch.bfloat16, pool=pool)
    inputs: list[Tensor | None] = [x, weight, None, None]
    emulator.run("conv2d_stem_sm80", problem, inputs, [y], "early", sampled=True, multiprocessors=1 << 20)
    assert float(y[0, 0, 0, 0]) == 300.0
    assert float(y[0, -1, -1, 0]) == float(torch.tensor(5000.0).to(torch.bfloat16))


def test_few_multiprocessors_walk_over_many_tiles(emulator: Emulator) -> None:
    """Two blocks for each 64 filters, whatever there is to do, and the result is that of many."""
    t = tensors(square(2, 3, 70, 70, 7, 2, 3), torch.bfloat16)
    problem = emulation.conv2d_problem(t.case, torch.bfloat16, pool=RESNETS)
    inputs, blocks, results = [nhwc(t.x), nhwc(t.weight), t.bias, None], [], []
    for multiprocessors in (2, 132):
        y = emulation.poisoned_like(nhwc(F.max_pool2d(t.residual, *RESNETS)))
        blocks.append(
            emulator.run("conv2d_stem_sm80", problem, inputs, [y], "late", multiprocessors=multiprocessors)
        )
        results.append(y)
    assert blocks == [4, 36]
    assert torch.equal(*results)


# ------------------------------------------------------------ planted bugs


def pooled(case: Case, dtype: torch.dtype, pool: Window = RESNETS) -> Check:
    """A test of the pooled convolution, also of one pixel that is NaN, that the unpatched kernel passes."""
    t = tensors(case, dtype)
    expected = reference.expected_pooled(t, pool, "none")
    spoilt = Tensors(case, t.x.clone(), t.weight, t.bias, t.residual, t.grad)
    spoilt.x[0, 0, case.H // 2, case.W // 2] = math.nan  # which the tap after the last of 7 would see
    seen = reference.expected_pooled(spoilt, pool, "none").value.isnan()

    def check(emulator: Emulator, ordering: str) -> None:
        expected.check(emulator.conv2d_pooled(t, pool, "none", ordering))
        assert torch.equal(emulator.conv2d_pooled(spoilt, pool, "none", ordering).isnan(), seen)

    return check


STEM = (square(1, 3, 60, 20, 7, 2, 3), torch.bfloat16)
SMALL = (square(1, 3, 16, 20, 7, 2, 3), torch.float32)
PLANTED: dict[str, tuple[str, str, Check]] = {
    "weights and pixels are used before they are there": (
        "  load_patch(stem, at, place_of(stem, walk));\n  device::block_barrier();",
        "  load_patch(stem, at, place_of(stem, walk));",
        pooled(*SMALL),
    ),
    "the map is pooled before it is there": (
        "device::block_barrier();  // the map is there",
        "// the map is there",
        pooled(*SMALL),
    ),
    "the next map overwrites the one that others still pool": (
        "device::block_barrier();  // the next patch is there",
        "// the next patch is there",
        pooled(*STEM),
    ),
    "the next patch is that of this tile": (
        "load_patch(stem, at, place_of(stem, tile + step));",
        "load_patch(stem, at, place_of(stem, tile));",
        pooled(*STEM),
    ),
    "the halo begins a row too late": (
        "(place.row * p.pool.stride - p.pool.pad) * kStride - p.pad_h",
        "(place.row * p.pool.stride - p.pool.pad + 1) * kStride - p.pad_h",
        pooled(*SMALL),
    ),
    "a tile leaves the halo to its neighbour": (
        "columns(static_cast<int32_t>((kColumns - p.pool.size) / p.pool.stride) + 1)",
        "columns(static_cast<int32_t>((kColumns - 1) / p.pool.stride) + 1)",
        pooled(*STEM),
    ),
    "a row beyond the map is pooled": (
        "p.pool.stride, p.pool.pad, p.P);",
        "p.pool.stride, p.pool.pad, p.P + 1);",
        pooled(square(1, 3, 21, 20, 7, 2, 3), torch.bfloat16),
    ),
    "a row of pixels beyond the picture is read": (
        "h >= 0 && h < p.H && w >= 0",
        "h >= 0 && h <= p.H && w >= 0",
        pooled(*SMALL),
    ),
    "the column before the picture is the row's above": (
        "h < p.H && w >= 0 && w < p.W",
        "h < p.H && w < p.W",
        pooled(*SMALL),
    ),
    "taps beyond the kernel see their pixels": (
        "if ((step + 1) * kStepBytes > stem.p.S * at.kTapBytes) drop_taps",
        "if ((step + 1) * kStepBytes > 8 * at.kTapBytes) drop_taps",
        pooled(*STEM),
    ),
    "a tap too many is dropped": ("kTapBytes >= S) a[i] = 0;", "kTapBytes >= S - 1) a[i] = 0;", pooled(*SMALL)),
    "channels beyond the picture's are the next pixel's": (
        "if (c < channels) pixel.at[c]",
        "pixel.at[c]",
        pooled(*STEM),
    ),
    "filters beyond the last are read": (
        "if (first + filter < stem.p.K && s < stem.p.S)",
        "if (s < stem.p.S)",
        pooled(*STEM),
    ),
    "lanes of the sums are mixed up": (
        "first + i * 16 + half * 8 + lane / 4;",
        "first + i * 16 + half * 8 + lane % 8;",
        pooled(*SMALL),
    ),
    "the fragments' halves along the sum are swapped": (
        "column * at.kTapBytes + lane / 16 * mma::kChunk",
        "column * at.kTapBytes + (1 - lane / 16) * mma::kChunk",
        pooled(*STEM),
    ),
    "NaN is forgotten": (
        "if (value > most[k] || value != value) most[k] = value;",
        "if (!(value <= most[k])) most[k] = value;",
        pooled(*STEM),
    ),
    "the last row of a window is left out": ("u < h.end; ++u", "u < h.end - 1; ++u", pooled(*SMALL)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_noticed(emulator: Emulator, name: str) -> None:
    old, new, check = PLANTED[name]
    assert_noticed(emulator, Patch(FILE, old, new, "conv2d_stem"), check)
