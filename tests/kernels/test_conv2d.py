"""conv2d and its gradients against float64: every variant, every shared case it covers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyserve.kernels import VariantInfo, conv2d
from tests.kernels import reference
from tests.kernels.cases import CASES, EMPTY, Case, square
from tests.kernels.reference import Tensors
from tests.kernels.support import NO_ACTIVATION, covered, covered_dtypes, numbers

ACTIVATIONS = ("relu", "relu6", "none", "relu")  # in turns, of the element types
Use = Callable[[VariantInfo], None]
Calls = Callable[[str], int]


def inputs(case: Case, dtype: torch.dtype, variant: VariantInfo) -> Tensors:
    """What a ReLU leaves in float32, standard normal values in the other element types."""
    return Tensors.random(case, dtype, post_relu=dtype is torch.float32, device=variant.device)


@covered("conv2d", CASES)
def test_forward(variant: VariantInfo, case: Case, use_variant: Use, calls: Calls) -> None:
    use_variant(variant)
    for dtype, activation in zip(covered_dtypes(variant, case), ACTIVATIONS, strict=False):
        before = calls(variant.name)
        t = inputs(case, dtype, variant)
        y = conv2d(t.x, t.weight, t.bias, *numbers(case), residual=t.residual, activation=activation)  # type: ignore[arg-type]
        assert calls(variant.name) == before + 1, f"{variant.name} did not run"
        added = t.bias.view(1, -1, 1, 1) + t.residual
        expected = reference.expected_forward(t, activation)
        if variant.algorithm in reference.WINOGRAD and dtype is torch.float32:
            own = reference.onednn(t.x, t.weight, case.padding, case.stride)
            expected.check_norm(y, reference.clamp(own + added, activation))
        elif reference.rounds_factors(variant):
            expected.check_pairs_norm(y)
        else:
            own = reference.conv2d(t.x, t.weight, case)
            expected.check(y, reference.clamp(own + added, activation))


def backward(t: Tensors, y: Tensor | None, bounds: tuple[float, float], wanted: list[bool]) -> tuple[Tensor, ...]:
    result: tuple[Tensor, ...] = torch.ops.pyserve.conv2d_backward(
        t.grad, y, t.x, t.weight, *numbers(t.case), *bounds, wanted
    )
    return result


@covered("conv2d_dgrad", CASES)
def test_gradient_of_x(variant: VariantInfo, case: Case, use_variant: Use, calls: Calls) -> None:
    use_variant(variant)
    for dtype in covered_dtypes(variant, case):
        before = calls(variant.name)
        t = inputs(case, dtype, variant)
        dx = backward(t, None, NO_ACTIVATION, [True, False, False, False])[0]
        assert calls(variant.name) == before + 1, f"{variant.name} did not run"
        expected = reference.expected_backward(t, t.grad, "none")[0]
        if variant.algorithm in reference.WINOGRAD and dtype is torch.float32:
            expected.check_norm(dx, reference.onednn_gradient(t.grad, t.weight, case.padding))
        elif reference.rounds_factors(variant):
            expected.check_pairs_norm(dx)
        else:
            expected.check(dx, reference.gradients(t.grad, t.x, t.weight, case)[0])


@covered("conv2d_wgrad", CASES)
def test_gradient_of_weight(variant: VariantInfo, case: Case, use_variant: Use, calls: Calls) -> None:
    use_variant(variant)
    for dtype in covered_dtypes(variant, case):
        before = calls(variant.name)
        t = inputs(case, dtype, variant)
        dw = backward(t, None, NO_ACTIVATION, [False, True, False, False])[1]
        assert calls(variant.name) == before + 1, f"{variant.name} did not run"
        expected = reference.expected_backward(t, t.grad, "none")[1]
        own = reference.gradients(t.grad, t.x, t.weight, case)[1]
        if variant.algorithm in reference.WINOGRAD and dtype is torch.float32:
            expected.check_norm(dw, own)
        elif reference.rounds_factors(variant):
            expected.check_pairs_norm(dw)
        else:
            expected.check(dw, own)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_gradients_through_the_activation(device: str, activation: str, dtype: torch.dtype) -> None:
    case = Case(2, 6, 9, 8, 10, 3, 3, (2, 1), (1, 1), (1, 1), 2)
    t = Tensors.random(case, dtype, post_relu=False, device=device)
    leaves = [t.x, t.weight, t.bias, t.residual]
    for leaf in leaves:
        leaf.requires_grad_()
    y = conv2d(t.x, t.weight, t.bias, *numbers(case), residual=t.residual, activation=activation)  # type: ignore[arg-type]
    dx, dw, db, dresidual = torch.autograd.grad(y, leaves, t.grad)
    for_x, for_weight, for_bias, for_residual = reference.expected_backward(t, y, activation)
    for_x.check(dx)
    for_weight.check(dw)
    for_bias.check(db)
    assert torch.equal(dresidual.cpu().double(), for_residual)


@pytest.mark.parametrize(
    "case", [square(2, 16, 9, 40, 3, 2, 1), square(3, 24, 7, 72, 1), square(2, 3, 9, 24, 7, 2, 3)], ids=str
)
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_without_a_residual(device: str, activation: str, dtype: torch.dtype, case: Case) -> None:
    """Where nobody wants the masked gradient itself, kernels may apply the mask as they load it."""
    t = Tensors.random(case, dtype, post_relu=False, device=device)
    y = reference.clamp(4 * t.residual, activation)
    bounds = reference.BOUNDS[activation]
    expected = reference.expected_backward(t, y, activation)
    in_pairs = device == "cpu" and dtype is torch.bfloat16 and case.R == 3  # Winograd's, where the CPU has them
    for wanted in ([True, True, True], [True, True, False], [False, True, True], [True, False, True]):
        got = backward(t, y, bounds, [*wanted, False])
        for one, want, asked in zip(got, expected, wanted, strict=False):
            if asked and in_pairs:
                want.check_pairs_norm(one)
            elif asked:
                want.check(one)


def test_only_the_gradients_asked_for_are_computed(device: str) -> None:
    case = Case(1, 3, 5, 5, 4, 3, 3)
    t = Tensors.random(case, torch.float32, post_relu=False, device=device)
    for i, sizes in enumerate(([1, 3, 5, 5], [4, 3, 3, 3], [4], [1, 4, 3, 3])):
        got = backward(t, None, NO_ACTIVATION, [j == i for j in range(4)])
        assert [list(g.shape) for g in got] == [sizes if j == i else [0] for j in range(4)]


def test_empty_batch(device: str) -> None:
    t = Tensors.random(EMPTY, torch.float32, post_relu=False, device=device)
    leaves = [t.x.requires_grad_(), t.weight.requires_grad_(), t.bias.requires_grad_()]
    y = conv2d(*leaves, *numbers(EMPTY), activation="relu")
    assert y.shape == (0, 5, 6, 6)
    dx, dw, db = torch.autograd.grad(y, leaves, t.grad)
    assert dx.shape == t.x.shape
    assert not dw.any()
    assert not db.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_nan_and_infinity_stay(device: str, dtype: torch.dtype, value: float) -> None:
    x = torch.ones(1, 8, 3, 3, dtype=dtype, device=device)
    x[0, 3, 1, 1] = value
    weight = torch.ones(17, 8, 1, 1, dtype=dtype, device=device)
    y = conv2d(x, weight, activation="relu")
    expected = torch.nn.functional.conv2d(x, weight).relu()
    assert torch.equal(y.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert bool(y[0, :, 1, 1].isnan().all()) == math.isnan(value)


def test_nan_lets_the_gradient_pass_as_torch_does(device: str) -> None:
    x = torch.tensor([1.0, -1.0, float("nan"), 0.0], device=device).reshape(1, 1, 2, 2).requires_grad_()
    weight = torch.ones(1, 1, 1, 1, device=device)
    (ours,) = torch.autograd.grad(conv2d(x, weight, activation="relu").nansum(), x)
    (torchs,) = torch.autograd.grad(torch.nn.functional.conv2d(x, weight).relu().nansum(), x)
    assert torch.equal(ours, torchs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [20, 180])
def test_weight_gradient_does_not_depend_on_the_number_of_threads(dtype: torch.dtype, channels: int) -> None:
    t = Tensors.random(Case(4, channels, 15, 15, 24, 3, 3), dtype, post_relu=False)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(backward(t, None, NO_ACTIVATION, [False, True, True, False])[1:3])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
