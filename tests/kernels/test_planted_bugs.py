"""The emulator notices: a bug is planted in a copy of a CUDA kernel's source, and the emulated tests must fail."""

from __future__ import annotations

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


SMALL = square(1, 16, 6, 24, 3, 1, 1)
MANY_POSITIONS = square(2, 5, 40, 6, 3, 1, 1)
SIMT, OPERANDS, POINTWISE = "cuda/product_simt.cuh", "cuda/conv2d_operands.h", "cuda/bias_relu_simt.cuh"
PLANTED: dict[str, tuple[Patch, Check]] = {
    "simt: tiles are read before all of them is written": (
        Patch(SIMT, "device::block_barrier();\n    if (k + kDepth < end) {", "if (k + kDepth < end) {"),
        forward("conv2d_simt_cuda", SMALL),
    ),
    "simt: tiles are overwritten before all of them is read": (
        Patch(
            SIMT, "right_tile + column_at, sums);\n    device::block_barrier();", "right_tile + column_at, sums);"
        ),
        forward("conv2d_simt_cuda", SMALL),
    ),
    "simt: the halo's first row is left out": (
        Patch(OPERANDS, "return h >= 0 && h < p->H", "return h > 0 && h < p->H"),
        forward("conv2d_simt_cuda", SMALL),
    ),
    "simt: a row beyond the image is read": (
        Patch(OPERANDS, "h < p->H && w >= 0", "h <= p->H && w >= 0"),
        forward("conv2d_simt_cuda", SMALL),
    ),
    "simt: two threads compute the same rows": (
        Patch(SIMT, "device::thread_index() / (kTile / kSide) * kSide", "device::thread_index() / kTile * kSide"),
        forward("conv2d_simt_cuda", SMALL),
    ),
    "simt: a tile reaches beyond the filters": (
        Patch(SIMT, "exists_[i] = index < size;", "exists_[i] = index <= size;"),
        forward("conv2d_simt_cuda", SMALL),
    ),
    "simt: parts of the sum overlap": (
        Patch(SIMT, "const int64_t begin = split * share, end", "const int64_t begin = split * (share - 1), end"),
        wgrad("conv2d_wgrad_simt_cuda", MANY_POSITIONS),
    ),
    "simt: strides are not divided": (
        Patch(OPERANDS, "P * p->stride_h != h ||", ""),
        dgrad("conv2d_dgrad_simt_cuda", square(1, 4, 8, 4, 3, 2, 1)),
    ),
    "bias_relu: sums are added before they are there": (
        Patch(
            POINTWISE,
            "device::block_barrier();\n    if (device::thread_index() < half)",
            "if (device::thread_index() < half)",
        ),
        channel_sums,
    ),
}


@pytest.fixture(scope="module")
def sound() -> Emulator:
    return emulation.build()


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_noticed(sound: Emulator, name: str) -> None:
    patch, check = PLANTED[name]
    for ordering in ORDERINGS:
        check(sound, ordering)
    planted = emulation.build(patch)
    failures = []
    for ordering in ORDERINGS:
        try:
            check(planted, ordering)
        except AssertionError as failure:  # a wrong result, or a ViolationError
            failures.append(failure)
    assert failures, f"nothing noticed: {name}"
