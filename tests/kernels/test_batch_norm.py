"""batch_norm_relu against PyTorch's BatchNorm: values, gradients, running statistics, errors; the fakes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyserve.errors import InvalidArgumentError
from pyserve.kernels import batch_norm_relu, info
from pyserve.kernels.ops import output_format

SIZES = [(4, 24, 7, 5), (3, 5, 6, 6), (16, 40), (2, 8, 3)]


def leaves(sizes: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    """x, weight, bias and residual."""
    torch.manual_seed(0)
    C = sizes[1]
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    x, residual = (torch.randn(sizes).to(dtype) for _ in range(2))
    if len(sizes) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    values = [x, torch.randn(C).to(wide), torch.randn(C).to(wide), residual]
    return [value.to(device).requires_grad_() for value in values]


@pytest.mark.parametrize("training", [True, False], ids=["training", "running"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_is_torchs_batch_norm(device: str, sizes: tuple[int, ...], dtype: torch.dtype, training: bool) -> None:
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    running = [torch.randn(sizes[1]).to(device, wide), (torch.rand(sizes[1]) + 0.5).to(device, wide)]
    exact_running = [value.double().cpu() for value in running]
    x, weight, bias, residual = inputs = leaves(sizes, dtype, device)
    exact = [value.detach().cpu().double().requires_grad_() for value in inputs]
    y = batch_norm_relu(
        x, weight, bias, residual, running_mean=running[0], running_var=running[1], training=training, momentum=0.3
    )
    expected = F.relu(F.batch_norm(exact[0], *exact_running, exact[1], exact[2], training, 0.3, 1e-5) + exact[3])
    atol = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    torch.testing.assert_close(y.detach().cpu().double(), expected.detach(), atol=atol, rtol=atol)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=output_format(x))
    for ours, exactly in zip(running, exact_running, strict=True):
        torch.testing.assert_close(ours.cpu().double(), exactly, atol=max(1e-5, atol / 10), rtol=1e-3)
    grad = torch.randn(sizes, dtype=torch.float64)
    # Where rounding decides whether the activation passes, no gradient is compared.
    grad[(expected.detach().abs() < atol) & (grad != 0)] = 0
    ours = torch.autograd.grad(y, inputs, grad.to(device, dtype))
    exactly = torch.autograd.grad(expected, exact, grad.to(dtype).double())
    for a, b in zip(ours, exactly, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, atol=10 * atol, rtol=10 * atol)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_activations(device: str, activation: str) -> None:
    x, weight, bias, _ = leaves((4, 16, 5, 5), torch.float32, device)
    plain = F.batch_norm(x, None, None, 4 * weight, bias, True)
    expected = {"none": plain, "relu": plain.relu(), "relu6": F.relu6(plain)}[activation]
    y = batch_norm_relu(x, 4 * weight, bias, activation=activation)  # type: ignore[arg-type]
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
    for a, b in zip(
        torch.autograd.grad(y.sum(), [weight, bias]),
        torch.autograd.grad(expected.sum(), [weight, bias]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_a_mean_far_from_zero_does_not_drown_the_variance(device: str) -> None:
    torch.manual_seed(0)
    x = (1000 + torch.randn(64, 8, 9, 9)).to(device)
    ones, zeros = torch.ones(8, device=device), torch.zeros(8, device=device)
    y = batch_norm_relu(x, ones, zeros, activation="none")
    expected = F.batch_norm(x.double(), None, None, ones.double(), zeros.double(), True)
    torch.testing.assert_close(y.double(), expected, atol=1e-3, rtol=1e-3)


def test_the_gpu_runs_our_kernels(device: str) -> None:
    before = info().calls
    batch_norm_relu(*leaves((4, 16, 5, 5), torch.bfloat16, device)).sum().backward()
    ran = {name for name, calls in info().calls.items() if calls > before.get(name, 0)}
    expected = {"batch_norm_relu_simt_cuda", "batch_norm_relu_backward_simt_cuda"} if device == "cuda" else set()
    assert ran == expected


ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"weight": torch.ones(3)}, "weight is [3], expected [4]: one value per channel (x is [2, 4, 3, 3])"),
    ({"bias": torch.ones(4, dtype=torch.float64)}, "bias is float64, expected float32 beside float32"),
    ({"residual": torch.ones(2, 4, 3, 2)}, "residual is [2, 4, 3, 2], expected [2, 4, 3, 3]: the sizes of x"),
    ({"mean": torch.ones(4)}, "mean and inv_std are expected both, or neither"),
]


@pytest.mark.parametrize(("wrong", "sentence"), ARGUMENTS, ids=[next(iter(wrong)) for wrong, _ in ARGUMENTS])
def test_the_fake_refuses_with_a_sentence(wrong: dict[str, Any], sentence: str) -> None:
    right = {"x": torch.ones(2, 4, 3, 3), "weight": torch.ones(4), "bias": torch.ones(4)}
    right |= {"residual": None, "mean": None, "inv_std": None}
    arguments = {k: v if v is None else v.to("meta") for k, v in (right | wrong).items()}
    with pytest.raises(InvalidArgumentError) as caught:
        torch.ops.pyserve.batch_norm_relu(*arguments.values(), 1e-5, 0.0, math.inf)
    assert sentence in str(caught.value)


def test_one_value_per_channel_has_no_variance(device: str) -> None:
    with pytest.raises(InvalidArgumentError, match="more than one value per channel"):
        batch_norm_relu(*leaves((1, 4, 1, 1), torch.float32, device), training=True)


def test_fakes_say_what_comes_back() -> None:
    x = torch.empty(2, 4, 3, 3, device="meta", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    weight = torch.empty(4, device="meta")
    y, mean, inv_std = torch.ops.pyserve.batch_norm_relu(x, weight, weight, None, None, None, 1e-5, 0.0, math.inf)
    assert (y.shape, y.dtype, y.stride()) == (x.shape, x.dtype, x.stride())
    assert (mean.shape, inv_std.dtype) == ((4,), torch.float32)
    got = torch.ops.pyserve.batch_norm_relu_backward(y, y, x, weight, mean, inv_std, True, 0.0, math.inf, True)
    assert [list(t.shape) for t in got] == [[2, 4, 3, 3], [4], [4], [2, 4, 3, 3]]
