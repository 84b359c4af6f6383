"""batch_norm_relu and its gradients: every variant, and as a PyTorch operator and layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyserve.errors import InvalidArgumentError
from pyserve.kernels import BatchNorm2d, VariantInfo, batch_norm_relu, info
from tests.kernels import reference
from tests.kernels.support import elementwise_dtypes, variants

Use = Callable[[VariantInfo], None]
Calls = Callable[[str], int]

EPS = 1e-5
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 2e-2, torch.float64: 1e-9}
SIZES = [
    (2, 5, 3, 3),
    (1, 1, 1, 2),
    (3, 7, 1, 9),
    (2, 16, 4, 4),
    (3, 17, 13, 5),
    (70, 33, 2, 1),
    (3, 64, 30, 8),
    (6, 9),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random(*sizes: int, dtype: torch.dtype) -> Tensor:
    values = torch.randn(sizes, dtype=torch.float64).to(dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(sizes) == 4 else values


def parameters_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def shifted(sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Channels with means of their own, some of them many deviations from zero."""
    means = torch.linspace(-30, 50, sizes[1]).view(1, -1, *[1] * (len(sizes) - 2))
    x = (random(*sizes, dtype=torch.float64) + means).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if len(sizes) == 4 else x


def plain(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, activation: str) -> Tensor:
    y = F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS)
    return reference.clamp(y if residual is None else y + residual, activation)


CASES = [("none", False), ("relu", False), ("relu", True), ("relu6", True)]


@pytest.mark.parametrize(("activation", "with_residual"), CASES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("variant", variants("batch_norm_relu"), ids=lambda variant: variant.name)
def test_training(
    variant: VariantInfo,
    sizes: tuple[int, ...],
    activation: str,
    with_residual: bool,
    use_variant: Use,
    calls: Calls,
) -> None:
    """Outputs, statistics and all gradients, against PyTorch's in float64."""
    use_variant(variant)
    for dtype in elementwise_dtypes(variant):
        of = parameters_of(dtype)
        tensors = [
            shifted(sizes, dtype),
            1 + 0.3 * random(sizes[1], dtype=of),
            random(sizes[1], dtype=of),
            *([random(*sizes, dtype=dtype)] if with_residual else []),
        ]
        grad = random(*sizes, dtype=dtype)
        before = calls(variant.name)
        leaves = [t.to(variant.device, copy=True).requires_grad_() for t in tensors]
        running = [fill(sizes[1], dtype=of, device=variant.device) for fill in (torch.zeros, torch.ones)]
        residual = leaves[3] if with_residual else None
        y = batch_norm_relu(
            leaves[0], *running, leaves[1], leaves[2], True, 0.25, EPS, residual=residual, activation=activation
        )  # type: ignore[arg-type]
        got = torch.autograd.grad(y, leaves, grad.to(variant.device))
        assert calls(variant.name) == before + 1, f"{variant.name} did not run"

        exact = [t.double().requires_grad_() for t in tensors]
        expected = plain(exact[0], exact[1], exact[2], exact[3] if with_residual else None, activation)
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(y.cpu().double(), expected, atol=tolerance, rtol=tolerance)
        # A value that rounding could carry over a bound of the activation has one gradient or the other.
        before_it = plain(exact[0], exact[1], exact[2], exact[3] if with_residual else None, "none")
        lo, hi = reference.BOUNDS[activation]
        sure = ((before_it - lo).abs() > tolerance) & ((before_it - hi).abs() > tolerance)
        if bool(sure.all()) and dtype in (torch.float32, torch.float64):
            for ours, exactly in zip(got, torch.autograd.grad(expected, exact, grad.double()), strict=True):
                torch.testing.assert_close(ours.cpu().double(), exactly, atol=20 * tolerance, rtol=20 * tolerance)
        dims = [d for d in range(len(sizes)) if d != 1]
        mean, var = tensors[0].double().mean(dims), tensors[0].double().var(dims)
        torch.testing.assert_close(running[0].cpu().double(), 0.25 * mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(running[1].cpu().double(), 0.75 + 0.25 * var, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", variants("batch_norm_relu_backward"), ids=lambda variant: variant.name)
@pytest.mark.parametrize("training", [True, False])
def test_backward_reads_the_mask_from_y_or_from_x(variant: VariantInfo, training: bool, use_variant: Use) -> None:
    use_variant(variant)
    x, grad = (random(3, 19, 7, 5, dtype=torch.float32).to(variant.device) for _ in range(2))
    weight, bias, mean, var = (torch.randn(19).to(variant.device) for _ in range(4))
    given = (None, None) if training else (mean, var.abs())
    y, mean, var = torch.ops.pyserve.batch_norm_relu(x, weight, bias, None, *given, EPS, 0.0, 6.0)
    if not training:
        mean, var = given
    results = [
        torch.ops.pyserve.batch_norm_relu_backward(
            grad, mask, x, weight, bias, mean, var, training, EPS, 0.0, 6.0, [True] * 4
        )
        for mask in (y, None)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert torch.equal(results[0][3], grad.masked_fill((y <= 0) | (y >= 6), 0))


def test_evaluation_uses_the_running_statistics(device: str) -> None:
    x = random(2, 6, 5, 4, dtype=torch.float32).to(device).requires_grad_()
    mean, var = torch.randn(6, device=device), torch.rand(6, device=device) + 0.5
    weight, bias = (torch.randn(6, device=device).requires_grad_() for _ in range(2))
    kept = mean.clone(), var.clone()
    ours = batch_norm_relu(x, mean, var, weight, bias, activation="relu")
    torchs = F.relu(F.batch_norm(x, mean, var, weight, bias))
    torch.testing.assert_close(ours, torchs)
    assert torch.equal(mean, kept[0])
    assert torch.equal(var, kept[1])
    for a, b in zip(
        *(torch.autograd.grad(y.square().sum(), [x, weight, bias]) for y in (ours, torchs)), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_gradcheck() -> None:
    x, residual = (random(3, 4, 3, 2, dtype=torch.float64).requires_grad_() for _ in range(2))
    weight, bias = (torch.randn(4, dtype=torch.float64).requires_grad_() for _ in range(2))
    for given in (None, torch.rand(4, dtype=torch.float64) + 0.5):

        def function(*tensors: Tensor, given: Tensor | None = given) -> Tensor:
            training = given is None
            return batch_norm_relu(tensors[0], given, given, *tensors[1:3], training, residual=tensors[3])

        assert torch.autograd.gradcheck(function, (x, weight, bias, residual))
        assert torch.autograd.gradgradcheck(function, (x, weight, bias, residual))

    def without_residual(*tensors: Tensor) -> Tensor:
        return batch_norm_relu(tensors[0], None, None, *tensors[1:], True)

    assert torch.autograd.gradcheck(without_residual, (x, weight, bias))
    assert torch.autograd.gradgradcheck(without_residual, (x, weight, bias))


def test_opcheck() -> None:
    x, residual = random(2, 5, 3, 4, dtype=torch.float32), random(2, 5, 3, 4, dtype=torch.float32)
    weight, bias, mean, var = (torch.rand(5) + 0.5 for _ in range(4))
    forward, backward = torch.ops.pyserve.batch_norm_relu, torch.ops.pyserve.batch_norm_relu_backward
    leaves = [t.requires_grad_() for t in (x, weight, bias, residual)]
    bounds = (EPS, 0.0, math.inf)
    torch.library.opcheck(forward.default, (*leaves, None, None, *bounds))
    torch.library.opcheck(forward.default, (leaves[0], None, None, None, mean, var, *bounds))
    grad = random(2, 5, 3, 4, dtype=torch.float32)
    args = (grad, x.detach(), x.detach(), weight.detach(), bias.detach(), mean, var, True, *bounds, [True] * 4)
    torch.library.opcheck(backward.default, args)


def test_compile_without_a_break() -> None:
    norm = BatchNorm2d(6)
    twin = copy.deepcopy(norm)
    x = random(2, 6, 5, 4, dtype=torch.float32)

    def run(module: BatchNorm2d, x: Tensor) -> Tensor:
        return module(x, x, "relu")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(norm, x), run(twin, x))
    torch.testing.assert_close(norm.running_var, twin.running_var)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}], ids=str
)
def test_the_layer_is_torchs(options: dict[str, Any]) -> None:
    torchs = nn.BatchNorm2d(6, **options)
    ours = BatchNorm2d(6, **options)
    ours.load_state_dict(torchs.state_dict())
    for training in (True, True, False):
        torchs.train(training)
        ours.train(training)
        x = random(3, 6, 4, 5, dtype=torch.float32)
        torch.testing.assert_close(ours(x), torchs(x), atol=1e-5, rtol=1e-5)
    for key, value in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)
    residual = torch.randn(1, 6, 1, 1)
    torch.testing.assert_close(ours(x, residual, "relu6"), F.relu6(torchs(x) + residual), atol=1e-5, rtol=1e-5)


def test_running_statistics_are_torchs_over_many_batches() -> None:
    ours, torchs = BatchNorm2d(16), nn.BatchNorm2d(16)
    for _ in range(30):
        x = shifted((4, 16, 9, 9), torch.float32)
        ours(x)
        torchs(x)
    torch.testing.assert_close(ours.running_mean, torchs.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.running_var, torchs.running_var, rtol=1e-5, atol=1e-6)


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    x, grad = shifted((5, 20, 23, 19), torch.float32), random(5, 20, 23, 19, dtype=torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf, weight = x.clone().requires_grad_(), torch.ones(20, requires_grad=True)
            y = batch_norm_relu(leaf, None, None, weight, None, True)
            results.append([y.detach(), *torch.autograd.grad(y, [leaf, weight], grad)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_nan_stays_in_its_channel() -> None:
    x = random(2, 18, 4, 4, dtype=torch.float32)
    x[0, 3, 1, 1] = math.nan
    y = batch_norm_relu(x, None, None, training=True)
    assert bool(y[:, 3].isnan().all())
    assert not bool(y[:, torch.arange(18) != 3].isnan().any())


def test_what_our_kernels_do_not_have_is_counted() -> None:
    x = torch.randn(2, 3, 4, 5, 6)
    before = sum(info().fallbacks.values())
    y = batch_norm_relu(x, None, None, training=True)
    torch.testing.assert_close(y, F.relu(F.batch_norm(x, None, None, training=True)))
    assert sum(info().fallbacks.values()) == before + 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"weight": torch.ones(5)}, "weight is [5], expected [4]: one value per channel (x is [2, 4, 3, 3])"),
        ({"residual": torch.ones(2, 4, 3, 2)}, "residual is [2, 4, 3, 2], expected [2, 4, 3, 3]: the sizes of x"),
        ({"activation": "tanh"}, "batch_norm_relu.activation"),
        ({"eps": -1.0}, "eps is -1, expected >= 0"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        batch_norm_relu(torch.ones(2, 4, 3, 3), None, None, **{"training": True, **arguments})
    assert sentence in str(error.value)


def test_one_value_per_channel_cannot_be_normalised() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm_relu(torch.ones(1, 4, 1, 1), None, None, training=True)
