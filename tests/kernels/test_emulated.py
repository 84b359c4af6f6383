"""Every CUDA kernel's logic, run on the CPU through the emulator, against float64; in both orderings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pyserve.kernels import VariantInfo
from tests.kernels import emulation, reference
from tests.kernels.cases import CASES, Case, square
from tests.kernels.emulation import ORDERINGS, Emulator, Patch, nhwc
from tests.kernels.reference import Expected, Tensors, sum_bound
from tests.kernels.support import DTYPES, covered, covered_dtypes, variants

BIAS_RELU_SIZES = [
    (2, 5, 9),
    (1, 1, 1),
    (3, 7, 16),
    (600, 33, 1),
    (70, 64, 1),
    (5, 4, 7),
    (1000, 8, 1),
    (40, 3, 300),
]


ACTIVATIONS = ("relu", "relu6", "none", "relu")  # in turns, of the element types


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return emulation.build()


def orderings(dtype: torch.dtype) -> tuple[str, ...]:
    """Each ordering, with large or small tiles, in one of float32 and float64, and in one of bfloat16 and float16:
    they share their templates."""
    return ORDERINGS[:1] if dtype in (torch.float32, torch.bfloat16) else ORDERINGS[1:]


def emulated_dtypes(variant: VariantInfo, case: Case) -> list[tuple[torch.dtype, str]]:
    """The element types to run a case in, each with an activation; of a large case one, in turns."""
    found = list(zip(covered_dtypes(variant, case), ACTIVATIONS, strict=False))
    products = case.N * case.H * case.W * case.C * case.K * case.R * case.S // (case.stride[0] * case.stride[1])
    return found if products < 1_000_000 else [found[(case.C + case.H) % len(found)]]


@covered("conv2d", CASES, "cuda")
def test_forward(emulator: Emulator, variant: VariantInfo, case: Case) -> None:
    for dtype, activation in emulated_dtypes(variant, case):
        t = Tensors.random(case, dtype, post_relu=dtype is torch.float32)
        expected = reference.expected_forward(t, activation)
        for ordering in orderings(dtype):
            expected.check(emulator.conv2d(variant.name, t, activation, ordering))


@covered("conv2d_dgrad", CASES, "cuda")
def test_gradient_of_x(emulator: Emulator, variant: VariantInfo, case: Case) -> None:
    for dtype, _ in emulated_dtypes(variant, case):
        t = Tensors.random(case, dtype, post_relu=False)
        expected = reference.expected_backward(t, t.grad, "none")[0]
        for ordering in orderings(dtype):
            expected.check(emulator.conv2d_dgrad(variant.name, t, ordering))


@covered("conv2d_wgrad", CASES, "cuda")
def test_gradient_of_weight(emulator: Emulator, variant: VariantInfo, case: Case) -> None:
    for dtype, _ in emulated_dtypes(variant, case):
        t = Tensors.random(case, dtype, post_relu=dtype is torch.float32)
        expected = reference.expected_backward(t, t.grad, "none")[1]
        for ordering in orderings(dtype):
            expected.check(emulator.conv2d_wgrad(variant.name, t, ordering))


# ------------------------------------------------------------ the activation's mask, as the gradient is loaded

MASKED_CASES = [
    square(2, 24, 9, 40, 3, 1, 1),
    square(1, 40, 12, 136, 3, 2, 1),
    square(2, 5, 7, 13, 3, 1, 1),
    square(1, 3, 17, 24, 7, 2, 3),
    square(2, 32, 7, 48, 3, 1, 1, groups=2),
    square(2, 72, 9, 130, 1),
    square(2, 24, 9, 40, 1, 2),
    square(6, 8, 20, 70, 1),
]
MASKED = [
    (algorithm, case, dtype)
    for algorithm in ("mma", "pointwise")
    for case in MASKED_CASES
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    if algorithm == "mma" or case.R == 1
]


@pytest.mark.parametrize(("algorithm", "case", "dtype"), MASKED, ids=str)
def test_gradients_through_the_activation(
    emulator: Emulator, algorithm: str, case: Case, dtype: torch.dtype
) -> None:
    """Those of x, weight and bias from grad and y, by kernels that nothing has masked grad for."""
    t = Tensors.random(case, dtype, post_relu=False)
    if dtype is torch.float32:
        t.x, t.weight, t.grad = in_tf32(t.x), in_tf32(t.weight), in_tf32(t.grad)
    for ordering, activation in zip(ORDERINGS, ("relu", "relu6"), strict=True):
        y = reference.clamp(4 * t.residual, activation)
        y[0, 0, 0, 0] = float("nan")  # lets the gradient pass
        for_x, for_weight, for_bias, _ = reference.expected_backward(t, y, activation)
        seen = {"tf32": dtype is torch.float32, "y": y, "activation": activation}
        for_x.check(emulator.conv2d_dgrad(f"conv2d_dgrad_{algorithm}_sm80", t, ordering, **seen))
        dbias = torch.full((case.K,), float("nan"), dtype=dtype)
        for_weight.check(emulator.conv2d_wgrad(f"conv2d_wgrad_{algorithm}_sm80", t, ordering, **seen, dbias=dbias))
        for_bias.check(dbias)


@pytest.mark.parametrize("tile", emulation.TILES)
@pytest.mark.parametrize("algorithm", ["mma", "pointwise"])
def test_every_tile_masks(emulator: Emulator, algorithm: str, tile: str) -> None:
    t = Tensors.random(TILED[algorithm], torch.bfloat16, post_relu=False)
    y = reference.clamp(4 * t.residual, "relu6")
    grad, x, weight, seen = map(nhwc, (t.grad, t.x, t.weight, y))
    problem = emulation.conv2d_problem(t.case, t.x.dtype, "relu6")
    for_x, for_weight, for_bias, _ = reference.expected_backward(t, y, "relu6")
    dx, dw, dbias = (emulation.poisoned_like(like) for like in (x, weight, t.bias))
    emulator.run(f"conv2d_dgrad_{algorithm}_sm80", problem, [grad, weight, seen], [dx], "early", tile=tile)
    emulator.run(f"conv2d_wgrad_{algorithm}_sm80", problem, [grad, x, seen], [dw, dbias], "late", tile=tile)
    for_x.check(dx.permute(0, 3, 1, 2))
    for_weight.check(dw.permute(0, 3, 1, 2))
    for_bias.check(dbias)


def test_the_bias_without_an_activation(emulator: Emulator) -> None:
    t = Tensors.random(square(3, 16, 12, 20, 3, 1, 1), torch.float16, post_relu=False)
    expected = reference.expected_backward(t, t.grad, "none")
    for ordering in ORDERINGS:
        dbias = emulation.poisoned_like(t.bias)
        expected[1].check(emulator.conv2d_wgrad("conv2d_wgrad_mma_sm80", t, ordering, dbias=dbias))
        expected[2].check(dbias)


# ------------------------------------------------------------ float32 as TF32


def in_tf32(t: Tensor) -> Tensor:
    """The values rounded to TF32: products of these are exact in float32, so the usual bound holds."""
    return ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


TF32_CASES = [c for c in CASES if c.groups == 1 or not (c.C // c.groups % 4 or c.K // c.groups % 4)]


TF32_WAYS = [
    (f"{op}_{algorithm}_sm80", op, case)
    for op in ("conv2d", "conv2d_dgrad", "conv2d_wgrad")
    for case in TF32_CASES
    for algorithm in ("mma", "pointwise")
    if algorithm == "mma" or ((case.R, case.S, *case.padding) == (1, 1, 0, 0) and case.C > 4)
]


@pytest.mark.parametrize(("name", "op", "case"), TF32_WAYS, ids=str)
def test_tf32(emulator: Emulator, name: str, op: str, case: Case) -> None:
    t = Tensors.random(case, torch.float32, post_relu=False)
    t.x, t.weight, t.grad = in_tf32(t.x), in_tf32(t.weight), in_tf32(t.grad)
    ordering = ORDERINGS[case.C % 2]
    if op == "conv2d":
        reference.expected_forward(t, "relu").check(emulator.conv2d(name, t, "relu", ordering, tf32=True))
        return
    expected = reference.expected_backward(t, t.grad, "none")
    if op == "conv2d_dgrad":
        expected[0].check(emulator.conv2d_dgrad(name, t, ordering, tf32=True))
    else:
        expected[1].check(emulator.conv2d_wgrad(name, t, ordering, tf32=True))


# ------------------------------------------------------------ the choice of tiles


TILED = {
    "mma": Case(2, 40, 9, 7, 136, 3, 3, padding=(1, 1)),
    "pointwise": Case(2, 40, 19, 13, 136, 1, 1, stride=(2, 2)),
}


@pytest.mark.parametrize("tile", emulation.TILES)
@pytest.mark.parametrize("algorithm", TILED)
@pytest.mark.parametrize("op", ["conv2d", "conv2d_dgrad", "conv2d_wgrad"])
def test_every_tile_gives_the_same(emulator: Emulator, op: str, algorithm: str, tile: str) -> None:
    t = Tensors.random(TILED[algorithm], torch.bfloat16, post_relu=False)
    problem, (x, weight, grad) = emulation.conv2d_problem(t.case, t.x.dtype), map(nhwc, (t.x, t.weight, t.grad))
    inputs = {
        "conv2d": [x, weight, None, None],
        "conv2d_dgrad": [grad, weight, None],
        "conv2d_wgrad": [grad, x, None],
    }
    like = {"conv2d": grad, "conv2d_dgrad": x, "conv2d_wgrad": weight}[op]
    by_rule, asked_for = emulation.poisoned_like(like), emulation.poisoned_like(like)
    more = [None] if op == "conv2d_wgrad" else []
    emulator.run(f"{op}_{algorithm}_sm80", problem, inputs[op], [by_rule, *more], "early")
    emulator.run(f"{op}_{algorithm}_sm80", problem, inputs[op], [asked_for, *more], "late", tile=tile)
    assert torch.equal(by_rule, asked_for)


def test_a_measured_tile_is_taken(emulator: Emulator) -> None:
    """A row of the table decides for its class of products, and for no other."""
    row = "{80, Op::conv2d, DType::bf16, 136, 360, 6, TileSize::narrow},"
    end = "the rule in choose_tile() decides.\n"
    tuned = emulation.build(Patch("tuned_tiles.inc", end, f"{end}{row}\n", "conv2d_mma"))
    blocks = {}
    for rows in (126, 130):
        t = Tensors.random(Case(1, 40, 1, rows, 136, 3, 3, padding=(1, 1)), torch.bfloat16, post_relu=False)
        problem, inputs = emulation.conv2d_problem(t.case, t.x.dtype), [nhwc(t.x), nhwc(t.weight), None, None]
        for kernels in (emulator, tuned):
            y = emulation.poisoned_like(nhwc(t.grad))
            blocks[rows, kernels is tuned] = kernels.run("conv2d_mma_sm80", problem, inputs, [y], "early")
    assert blocks == {(126, False): 2, (126, True): 5, (130, False): 4, (130, True): 4}


# ------------------------------------------------------------ bias_relu


@pytest.mark.parametrize("sizes", BIAS_RELU_SIZES, ids=str)
@pytest.mark.parametrize("variant", variants("bias_relu", "cuda"), ids=lambda variant: variant.name)
def test_bias_relu(emulator: Emulator, variant: VariantInfo, sizes: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    for dtype, activation in zip(DTYPES, ACTIVATIONS, strict=True):
        for with_bias, with_residual in ((True, True), (True, False), (False, True)):
            x, residual = (torch.randn(sizes, dtype=torch.float64).to(dtype) for _ in range(2))
            bias = torch.randn(sizes[1], dtype=torch.float64).to(dtype)
            y = emulation.poisoned_like(x)
            problem = emulation.bias_relu_problem(sizes, dtype, activation)
            inputs = [x, bias if with_bias else None, residual if with_residual else None]
            added = [x, bias.view(1, -1, 1) * with_bias, residual * with_residual]
            value, magnitude = sum(a.double() for a in added), sum(a.double().abs() for a in added)
            for ordering in orderings(dtype):
                emulator.run(variant.name, problem, inputs, [y], ordering)
                bound = sum_bound(value, magnitude, 1, dtype)
                Expected(reference.clamp(value, activation), bound).check(y)


@pytest.mark.parametrize("sizes", BIAS_RELU_SIZES, ids=str)
@pytest.mark.parametrize("variant", variants("bias_relu_backward", "cuda"), ids=lambda variant: variant.name)
def test_bias_relu_backward(emulator: Emulator, variant: VariantInfo, sizes: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    for dtype, activation in zip(DTYPES, ACTIVATIONS, strict=True):
        grad, y = (torch.randn(sizes, dtype=torch.float64).to(dtype) for _ in range(2))
        y = reference.clamp(8 * y, activation)
        expected = reference.masked(grad.double(), y.double(), activation)
        total, magnitude = expected.sum((0, 2)), expected.abs().sum((0, 2))
        problem = emulation.bias_relu_problem(sizes, dtype, activation)
        for ordering in orderings(dtype):
            dx, dbias = emulation.poisoned_like(grad), torch.full(sizes[1:2], float("nan"), dtype=dtype)
            seen = None if activation == "none" else y
            emulator.run(variant.name, problem, [grad, seen], [dx, dbias], ordering)
            assert torch.equal(dx.double(), expected)
            Expected(total, sum_bound(total, magnitude, expected.numel() // sizes[1], dtype)).check(dbias)


# ------------------------------------------------------------ more than 2³¹ elements

SIDE = 46_400  # SIDE² > 2³¹; of the zeros only the pages that are touched take memory


def zeros(*sizes: int) -> Tensor:
    """Zeros in bfloat16 that the operating system hands out page by page."""
    return torch.from_numpy(np.zeros(sizes, dtype=np.int16)).view(torch.bfloat16)


@pytest.mark.parametrize("variant", variants("conv2d", "cuda"), ids=lambda variant: variant.name)
def test_forward_beyond_32_bit_offsets(emulator: Emulator, variant: VariantInfo) -> None:
    case = Case(1, 1, SIDE, SIDE, 1, 2, 2, (SIDE - 2, SIDE - 2))
    if torch.bfloat16 not in covered_dtypes(variant, case):
        pytest.skip(f"{variant.name} does not take {case}")
    x, weight = zeros(1, SIDE, SIDE, 1), torch.tensor([1.0, 10.0, 100.0, 1000.0]).to(torch.bfloat16)
    x[0, :2, :2, 0] = torch.tensor([[1, 2], [3, 4]])
    x[0, -2:, -2:, 0] = torch.tensor([[5, 6], [7, 8]])
    y = emulation.poisoned_like(torch.empty(4, dtype=torch.bfloat16))
    problem = emulation.conv2d_problem(case, torch.bfloat16)
    emulator.run(variant.name, problem, [x, weight, None, None], [y], "early")
    sums = torch.tensor([1 + 20 + 300 + 4000, 0, 0, 5 + 60 + 700 + 8000])
    assert torch.equal(y, sums.to(torch.bfloat16))


@pytest.mark.parametrize("algorithm", ["mma", "pointwise"])
def test_pixels_beyond_32_bit_offsets(emulator: Emulator, algorithm: str) -> None:
    """The corners of more than 2³¹ numbers, read by a 1×1 kernel: forward, and for the gradient of weight."""
    case = Case(1, 8, 16_400, 16_400, 8, 1, 1, (16_399, 16_399))
    x, weight = zeros(1, 16_400, 16_400, 8), torch.eye(8, dtype=torch.bfloat16).view(8, 1, 1, 8)
    assert x.numel() > 2**31
    x[0, 0, 0, :], x[0, -1, -1, :] = torch.arange(8), torch.arange(8, 16)
    y, dw = emulation.poisoned_like(torch.empty(4, 8, dtype=torch.bfloat16)), emulation.poisoned_like(weight)
    problem = emulation.conv2d_problem(case, torch.bfloat16)
    emulator.run(f"conv2d_{algorithm}_sm80", problem, [x, weight, None, None], [y], "early")
    assert torch.equal(y, torch.stack([x[0, 0, 0], 0 * x[0, 0, 0], 0 * x[0, 0, 0], x[0, -1, -1]]))
    grad = torch.tensor([1.0, 0, 0, 2.0]).to(torch.bfloat16).repeat_interleave(8).view(1, 2, 2, 8)
    emulator.run(f"conv2d_wgrad_{algorithm}_sm80", problem, [grad, x, None], [dw, None], "late")
    assert torch.equal(dw.view(8, 8), (x[0, 0, 0] + 2 * x[0, -1, -1]).expand(8, 8))


@pytest.mark.parametrize("variant", variants("conv2d_dgrad", "cuda"), ids=lambda variant: variant.name)
def test_gradient_of_x_beyond_32_bit_offsets(emulator: Emulator, variant: VariantInfo) -> None:
    pad = SIDE // 2
    case = Case(1, 1, 1, 1, 1, 2, 2, padding=(pad, pad))
    if torch.bfloat16 not in covered_dtypes(variant, case):
        pytest.skip(f"{variant.name} does not take {case}")
    grad, weight = zeros(1, SIDE, SIDE, 1), torch.tensor([1.0, 10.0, 100.0, 1000.0]).to(torch.bfloat16)
    grad[0, pad - 1 : pad + 1, pad - 1 : pad + 1, 0] = torch.tensor([[4, 3], [2, 1]])
    dx = emulation.poisoned_like(torch.empty(1, dtype=torch.bfloat16))
    emulator.run(variant.name, emulation.conv2d_problem(case, torch.bfloat16), [grad, weight, None], [dx], "early")
    assert torch.equal(dx, torch.tensor([1.0 + 20 + 300 + 4000]).to(torch.bfloat16))
