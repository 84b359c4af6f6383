"""The emulator notices: a bug is planted in a copy of a CUDA kernel's source, and the emulated tests must fail."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from tests.kernels import emulation, reference
from tests.kernels.cases import Case, square
from tests.kernels.emulation import ORDERINGS, Emulator, Patch
from tests.kernels.reference import Tensors

Check = Callable[[Emulator, str], None]


def forward(variant: str, case: Case, dtype: torch.dtype = torch.float32) -> Check:
    """A test of conv2d that the unpatched kernel passes."""
    t = Tensors.random(case, dtype, post_relu=False)

    def check(emulator: Emulator, ordering: str) -> None:
        reference.expected_forward(t, "relu").check(emulator.conv2d(variant, t, "relu", ordering))

    return check


def wgrad(variant: str, case: Case, dtype: torch.dtype = torch.float32) -> Check:
    """Likewise of the gradient of weight."""
    t = Tensors.random(case, dtype, post_relu=False)

    def check(emulator: Emulator, ordering: str) -> None:
        reference.expected_backward(t, t.grad, "none")[1].check(emulator.conv2d_wgrad(variant, t, ordering))

    return check


def masked(op: str, case: Case, dtype: torch.dtype) -> Check:
    """Likewise of the gradients through a ReLU6, masked by the kernels themselves."""
    t = Tensors.random(case, dtype, post_relu=False)
    y = reference.clamp(4 * t.residual, "relu6")
    for_x, for_weight, for_bias, _ = reference.expected_backward(t, y, "relu6")

    def check(emulator: Emulator, ordering: str) -> None:
        if op == "dgrad":
            dx = emulator.conv2d_dgrad("conv2d_dgrad_mma_sm80", t, ordering, y=y, activation="relu6")
            return for_x.check(dx)
        dbias = emulation.poisoned_like(t.bias)
        dw = emulator.conv2d_wgrad("conv2d_wgrad_mma_sm80", t, ordering, y=y, activation="relu6", dbias=dbias)
        for_weight.check(dw)
        return for_bias.check(dbias)

    return check


def moments(case: Case, dtype: torch.dtype) -> Check:
    """Likewise of the statistics of conv2d's output."""
    t = Tensors.random(case, dtype, post_relu=False)

    def check(emulator: Emulator, ordering: str) -> None:
        y, mean, var = emulator.conv2d_statistics("conv2d_mma_sm80", t, ordering)
        exact = y.double().flatten(0, 2)
        torch.testing.assert_close(mean.double(), exact.mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(var.double(), exact.var(0, correction=0), atol=1e-5, rtol=1e-5)

    return check


def dgrad(variant: str, case: Case, dtype: torch.dtype = torch.float32) -> Check:
    """Likewise of the gradient of x."""
    t = Tensors.random(case, dtype, post_relu=False)

    def check(emulator: Emulator, ordering: str) -> None:
        reference.expected_backward(t, t.grad, "none")[0].check(emulator.conv2d_dgrad(variant, t, ordering))

    return check


def channel_sums(emulator: Emulator, ordering: str) -> None:
    """The gradient of a bias, by blocks that sum in shared memory."""
    sizes = (300, 33, 1)
    grad = torch.ones(sizes)
    dx, dbias = emulation.poisoned_like(grad), torch.full((33,), float("nan"))
    problem = emulation.bias_relu_problem(sizes, torch.float32, "none")
    emulator.run("bias_relu_backward_simt_cuda", problem, [grad, None], [dx, dbias], ordering)
    assert torch.equal(dbias, torch.full((33,), 300.0))


def statistics(emulator: Emulator, ordering: str) -> None:
    """Mean and variance of rows of zeros and twos, by blocks that sum in shared memory."""
    ones = torch.ones(33)
    x = torch.stack([0 * ones, 2 * ones]).repeat(150, 1)
    y, mean, var = emulation.poisoned_like(x), torch.full((33,), math.nan), torch.full((33,), math.nan)
    problem = emulation.batch_norm_problem(x, "none", training=True, eps=3.0)
    emulator.run("batch_norm_relu_simt_cuda", problem, [x, ones, ones, None], [y, mean, var], ordering)
    assert torch.equal(mean, ones)
    assert torch.equal(var, ones)
    assert torch.equal(y, 0.5 * (x + 1))


def norm_gradient(emulator: Emulator, ordering: str) -> None:
    """The gradients of BatchNorm of a map that fits into shared memory."""
    torch.manual_seed(0)
    x, grad, weight = torch.randn(90, 40), torch.randn(90, 40), torch.ones(40)
    mean, var = x.mean(0), x.var(0, correction=0)
    dx, dweight, dbias = emulation.poisoned_like(x), emulation.poisoned_like(mean), emulation.poisoned_like(mean)
    problem = emulation.batch_norm_problem(x, "none", training=True, eps=0.0)
    given = [grad, None, x, weight, weight, mean, var]
    emulator.run("batch_norm_relu_backward_simt_cuda", problem, given, [dx, dweight, dbias, None], ordering)
    normal = (x - mean) / var.sqrt()
    expected = (grad - grad.mean(0) - normal * (grad * normal).mean(0)) / var.sqrt()
    torch.testing.assert_close(dx, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(dweight, (grad * normal).sum(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(dbias, grad.sum(0), atol=1e-4, rtol=1e-4)


SMALL = square(1, 16, 6, 24, 3, 1, 1)
STRIDED = (square(2, 24, 9, 40, 1, 2), torch.bfloat16)
MANY_POSITIONS = square(2, 5, 40, 6, 3, 1, 1)
HALF = (square(2, 24, 9, 40, 3, 1, 1), torch.bfloat16)
FLAT, COLUMNS = (square(2, 40, 9, 72, 1), torch.float16), (square(1, 72, 20, 72, 3, 1, 1), torch.bfloat16)
NORM = "batch_norm_relu_simt.cuh"
NORM_GRADIENT = "batch_norm_relu_backward_simt.cuh"
CHANNELWISE, DEPTHWISE = square(2, 48, 9, 48, 3, 1, 1, groups=48), "conv2d_depthwise.cuh"
PRODUCT, TILE = "product_mma.cuh", "mma_tile.h"
SIMT, OPERANDS, PRODUCTS, POINTWISE = (
    "product_simt.cuh",
    "conv2d_operands.h",
    "conv2d_products.h",
    "bias_relu_simt.cuh",
)
PLANTED: dict[str, tuple[Patch, Check]] = {
    "simt: tiles are read before all of them is written": (
        Patch(
            SIMT, "device::block_barrier();\n    if (k + kDepth < end) {", "if (k + kDepth < end) {", "conv2d_simt"
        ),
        forward("conv2d_simt_cuda", SMALL),
    ),
    "simt: tiles are overwritten before all of them is read": (
        Patch(
            SIMT,
            "right_tile + column_at, sums);\n    device::block_barrier();",
            "right_tile + column_at, sums);",
            "conv2d_simt",
        ),
        forward("conv2d_simt_cuda", SMALL),
    ),
    "simt: the halo's first row is left out": (
        Patch(OPERANDS, "return h >= 0 && h < g->height", "return h > 0 && h < g->height", "conv2d_simt"),
        forward("conv2d_simt_cuda", SMALL),
    ),
    "simt: a row beyond the image is read": (
        Patch(OPERANDS, "h < g->height && w >= 0", "h <= g->height && w >= 0", "conv2d_simt"),
        forward("conv2d_simt_cuda", SMALL),
    ),
    "simt: two threads compute the same rows": (
        Patch(
            SIMT,
            "device::thread_index() / (kTile / kSide) * kSide",
            "device::thread_index() / kTile * kSide",
            "conv2d_simt",
        ),
        forward("conv2d_simt_cuda", SMALL),
    ),
    "simt: a tile reaches beyond the filters": (
        Patch(SIMT, "exists_[i] = index < size;", "exists_[i] = index <= size;", "conv2d_simt"),
        forward("conv2d_simt_cuda", SMALL),
    ),
    "simt: parts of the sum overlap": (
        Patch(SIMT, "begin = split * product.share;", "begin = split * (product.share - 1);", "conv2d_simt"),
        wgrad("conv2d_wgrad_simt_cuda", MANY_POSITIONS),
    ),
    "dgrad: a stride's taps are those of the next row": (
        Patch(OPERANDS, "first_tap * dilation % stride != a", "first_tap * dilation % stride == a", "conv2d_simt"),
        dgrad("conv2d_dgrad_simt_cuda", square(1, 4, 8, 4, 3, 2, 1)),
    ),
    "mma: a stage is not waited for": (
        Patch(PRODUCT, "device::copy_wait<Shape::kStages - 2>();", "", "conv2d_mma"),
        forward("conv2d_mma_sm80", *HALF),
    ),
    "mma: one stage too few is waited for": (
        Patch(
            PRODUCT,
            "device::copy_wait<Shape::kStages - 2>();",
            "device::copy_wait<Shape::kStages - 1>();",
            "conv2d_mma",
        ),
        forward("conv2d_mma_sm80", *HALF),
    ),
    "mma: a stage is read that others still copy into": (
        Patch(PRODUCT, "    device::block_barrier();  // everybody's", "    // everybody's", "conv2d_mma"),
        forward("conv2d_mma_sm80", *HALF),
    ),
    "mma: the ring is one stage off": (
        Patch(PRODUCT, "ahead = stage;\n", "ahead = stage + 1 == Shape::kStages ? 0 : stage + 1;\n", "conv2d_mma"),
        forward("conv2d_mma_sm80", *HALF),
    ),
    "mma: copies are not committed": (
        Patch(PRODUCT, "device::copy_commit();\n    multiply", "multiply", "conv2d_mma"),
        forward("conv2d_mma_sm80", *HALF),
    ),
    "mma: sums leave through stages still in use": (
        Patch(
            PRODUCT, "device::copy_wait<0>();\n  device::block_barrier();", "device::copy_wait<0>();", "conv2d_mma"
        ),
        forward("conv2d_mma_sm80", *FLAT),
    ),
    "mma: a warp reads sums before they are there": (
        Patch(
            PRODUCT,
            "    device::warp_barrier();\n#pragma unroll\n    for (int32_t run",
            "    for (int32_t run",
            "conv2d_mma",
        ),
        forward("conv2d_mma_sm80", *HALF),
    ),
    "mma: a warp overwrites sums before they are read": (
        Patch(PRODUCT, "    device::warp_barrier();\n  }\n}", "  }\n}", "conv2d_mma"),
        forward("conv2d_mma_sm80", *FLAT),
    ),
    "mma: blocks of the left fragment are swapped": (
        Patch(
            TILE,
            "kLeft ? block % 2 : block / 2, along = kLeft ? block / 2",
            "block / 2, along = kLeft ? block % 2",
            "conv2d_mma",
        ),
        forward("conv2d_mma_sm80", *HALF),
    ),
    "mma: a swizzle on the way in that is not undone": (
        Patch(
            PRODUCT, "tile + Tile::address(line, chunk_)", "tile + Tile::address(line ^ 1, chunk_)", "conv2d_mma"
        ),
        forward("conv2d_mma_sm80", *HALF),
    ),
    "mma: the transposed load takes other rows": (
        Patch(
            TILE,
            "step * 16 + along * 8 + row, outer",
            "step * 16 + along * 8 + row / 2 * 2, outer",
            "conv2d_wgrad_mma",
        ),
        wgrad("conv2d_wgrad_mma_sm80", *COLUMNS),
    ),
    "mma: lanes of the sums are mixed up": (
        Patch(
            PRODUCT,
            "(lane / 4 + half * 8) * Shape::kPitch + j * 8 + lane % 4 * 2",
            "(lane % 8 + half * 8) * Shape::kPitch + j * 8 + lane / 8 * 2",
            "conv2d_mma",
        ),
        forward("conv2d_mma_sm80", *HALF),
    ),
    "mma: the last part of the sum is left out": (
        Patch(PRODUCT, "(length + kDepth<T> - 1) / kDepth<T> : 0", "length / kDepth<T> : 0", "conv2d_mma"),
        forward("conv2d_mma_sm80", *HALF),
    ),
    "mma: the end of the sum is not looked at": (
        Patch(
            PRODUCT,
            "copy(tile, i, part, exists_[i] && inner_at < end, outer_[i], inner, distance)",
            "copy(tile, i, part, exists_[i], outer_[i], inner, distance)",
            "conv2d_mma",
        ),
        forward("conv2d_mma_sm80", *HALF),
    ),
    "mma: padded channels are not zero": (
        Patch(
            "pad_channels.cuh",
            "(row + 1) * channels, false, values)",
            "rows * channels, false, values)",
            "conv2d_mma",
        ),
        forward("conv2d_mma_sm80", square(2, 5, 9, 40, 3, 1, 1), torch.bfloat16),
    ),
    "mask: chunks are masked before they are there": (
        Patch(
            PRODUCT,
            "device::copy_wait<Shape::kStages - 2>();\n    unsigned char* const at = shared",
            "unsigned char* const at = shared",
            "conv2d_dgrad_mma",
        ),
        masked("dgrad", *HALF),
    ),
    "mask: others see chunks before they are masked": (
        Patch(PRODUCT, "    device::block_barrier();  // everybody's", "    // everybody's", "conv2d_dgrad_mma"),
        masked("dgrad", *HALF),
    ),
    "mask: the chunks masked are not those copied": (
        Patch(
            PRODUCT,
            "const int32_t at = Tile::address(line, chunk_);",
            "const int32_t at = Tile::address(line, chunk_ ^ 1);",
            "conv2d_dgrad_mma",
        ),
        masked("dgrad", *HALF),
    ),
    "mask: the stages of y overlap the next": (
        Patch(
            PRODUCT,
            "Shape::kStageBytes + masked_bytes<Shape>(product);\n  const auto",
            "Shape::kStageBytes;\n  const auto",
            "conv2d_dgrad_mma",
        ),
        masked("dgrad", *HALF),
    ),
    "mask: the upper bound is not looked at": (
        Patch(PRODUCT, "value <= lo || value >= hi", "value <= lo", "conv2d_wgrad_mma"),
        masked("wgrad", *COLUMNS),
    ),
    "mask: the bias is summed by every column of tiles": (
        Patch(
            PRODUCT,
            "column == 0 && device::thread_index() < Shape::kRows && mine",
            "device::thread_index() < Shape::kRows && mine",
            "conv2d_wgrad_mma",
        ),
        masked("wgrad", *COLUMNS),
    ),
    "moments: a warp's are stored over sums that others still read": (
        Patch(PRODUCT, "  device::block_barrier();  // the sums have left\n", "", "conv2d_mma"),
        moments(*HALF),
    ),
    "moments: those of other warps are merged before they are there": (
        Patch(
            PRODUCT,
            "* Shape::kColumns + at, moments);\n  device::block_barrier();",
            "* Shape::kColumns + at, moments);",
            "conv2d_mma",
        ),
        moments(*HALF),
    ),
    "moments: rows beyond the last are counted": (
        Patch("moments.h", "if (i < left) more.count += 1, more.mean", "more.count += 1, more.mean", "conv2d_mma"),
        moments(*HALF),
    ),
    "moments: the distance of two means is left out": (
        Patch("moments.h", "other.squares + distance * distance * (count * share)", "other.squares", "conv2d_mma"),
        moments(*HALF),
    ),
    "moments: the last tile counts as a full one": (
        Patch("channel_sums.cuh", "left < most ? left : most", "left == 0 ? left : most", "conv2d_mma"),
        moments(*HALF),
    ),
    "channel sums: they are added before they are there": (
        Patch("channel_sums.cuh", "  device::block_barrier();\n", "", "batch_norm_relu_simt"),
        statistics,
    ),
    "pointwise: a stride is not seen": (
        Patch(OPERANDS, "if (g->step_h == 1 && g->step_w == 1)", "if (g->step_h > 0)", "conv2d_pointwise"),
        forward("conv2d_pointwise_sm80", *STRIDED),
    ),
    "pointwise: positions are read a channel on": (
        Patch(OPERANDS, "return i * g->channels;", "return i * g->channels + 8;", "conv2d_pointwise"),
        wgrad("conv2d_wgrad_pointwise_sm80", *FLAT),
    ),
    "pointwise: the weights' rows are as long as the gradient's": (
        Patch(
            PRODUCTS,
            "return {weight, first_group.filter_stride};",
            "return {weight, patches.channels};",
            "conv2d_pointwise",
        ),
        dgrad("conv2d_dgrad_pointwise_sm80", *FLAT),
    ),
    "pointwise: the gradient's rows are written without gaps": (
        Patch(PRODUCTS, "if (row_step > 1 || column_step > 1) {", "if (row_step > 2) {", "conv2d_pointwise"),
        dgrad("conv2d_dgrad_pointwise_sm80", *STRIDED),
    ),
    "depthwise: weights are used before they are there": (
        Patch(
            DEPTHWISE,
            "  device::block_barrier();\n\n  const int32_t strip_at",
            "  const int32_t strip_at",
            "conv2d_depthwise",
        ),
        forward("conv2d_depthwise_cuda", CHANNELWISE),
    ),
    "depthwise: a column beyond the image is read": (
        Patch(DEPTHWISE, "w + i >= 0 && w + i < width;", "w + i >= 0 && w + i <= width;", "conv2d_depthwise"),
        forward("conv2d_depthwise_cuda", CHANNELWISE),
    ),
    "depthwise: the gradient's weights are not turned around": (
        Patch(DEPTHWISE, "weight_start += weight_w * (taps_w - 1), weight_w = -weight_w;", "", "conv2d_depthwise"),
        dgrad("conv2d_dgrad_depthwise_cuda", CHANNELWISE),
    ),
    "depthwise: sums of the next tap overwrite those of this one": (
        Patch(DEPTHWISE, "    device::block_barrier();\n  }\n}", "  }\n}", "conv2d_depthwise"),
        wgrad("conv2d_wgrad_depthwise_cuda", CHANNELWISE),
    ),
    "batch_norm: sums are added before they are there": (
        Patch(
            NORM,
            "device::block_barrier();\n    if (thread < width",
            "if (thread < width",
            "batch_norm_relu_simt",
        ),
        statistics,
    ),
    "batch_norm: a slice's sums are added before they are there": (
        Patch(
            NORM_GRADIENT,
            "  device::block_barrier();\n  const int64_t channel = device::block_index() * width",
            "  const int64_t channel = device::block_index() * width",
            "batch_norm_relu_simt",
        ),
        norm_gradient,
    ),
    "batch_norm: a slice's totals are used before they are there": (
        Patch(
            NORM_GRADIENT,
            "  device::block_barrier();\n  if (!works || args.dx == nullptr) return;",
            "  if (!works || args.dx == nullptr) return;",
            "batch_norm_relu_simt",
        ),
        norm_gradient,
    ),
    "batch_norm: a slice keeps its rows over others": (
        Patch(
            NORM_GRADIENT,
            "kept + (row * 2 + 1) * at.vectors + at.vector, x_kept",
            "kept + (row + 1) * at.vectors, x_kept",
            "batch_norm_relu_simt",
        ),
        norm_gradient,
    ),
    "batch_norm: the variance is of one row too few": (
        Patch(
            NORM,
            "row < at.end; row += at.lines) {\n      Acc values[count];\n      read(x",
            "row < at.end - 1; row += at.lines) {\n      Acc values[count];\n      read(x",
            "batch_norm_relu_simt",
        ),
        statistics,
    ),
    "bias_relu: sums are added before they are there": (
        Patch(
            POINTWISE,
            "device::block_barrier();\n    if (device::thread_index() < half)",
            "if (device::thread_index() < half)",
            "bias_relu_simt",
        ),
        channel_sums,
    ),
}


@pytest.fixture(scope="module")
def sound() -> Emulator:
    return emulation.build()


def assert_noticed(sound: Emulator, patch: Patch, check: Check) -> None:
    """The check passes with the kernels as they are, in both orderings, and fails in one with the patch."""
    for ordering in ORDERINGS:
        check(sound, ordering)
    planted = emulation.build(patch)
    failures = []
    for ordering in ORDERINGS:
        try:
            check(planted, ordering)
        except AssertionError as failure:  # a wrong result, or a ViolationError
            failures.append(failure)
    assert failures, "nothing noticed"


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_noticed(sound: Emulator, name: str) -> None:
    assert_noticed(sound, *PLANTED[name])
