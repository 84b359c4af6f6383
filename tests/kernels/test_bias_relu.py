"""bias_relu and its gradients: every variant, both memory layouts, sizes around the vectors' widths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyserve.kernels import VariantInfo, bias_relu
from tests.kernels import reference
from tests.kernels.reference import Expected, sum_bound
from tests.kernels.support import elementwise_dtypes, variants

Use = Callable[[VariantInfo], None]
Calls = Callable[[str], int]

SIZES = [(2, 5, 3, 3), (1, 1, 1, 1), (3, 7, 1, 9), (2, 8, 4, 4), (2, 9, 4, 4), (1, 15, 5, 2), (2, 17, 33, 2)]
SIZES += [(70, 33, 2, 1), (3, 64, 8, 8), (2, 6), (5, 4, 7), (1, 3, 2, 2, 2)]


def random(sizes: tuple[int, ...], dtype: torch.dtype, device: str, *, channels_last: bool) -> Tensor:
    values = torch.randn(sizes, dtype=torch.float64).to(dtype).to(device)
    if channels_last and len(sizes) == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    return values


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("variant", variants("bias_relu"), ids=lambda variant: variant.name)
def test_forward(
    variant: VariantInfo, sizes: tuple[int, ...], channels_last: bool, use_variant: Use, calls: Calls
) -> None:
    use_variant(variant)
    torch.manual_seed(0)
    for dtype in elementwise_dtypes(variant):
        for with_bias, with_residual, activation in (
            (1, 1, "relu6"),
            (1, 0, "relu"),
            (0, 1, "relu"),
            (0, 0, "none"),
        ):
            x = random(sizes, dtype, variant.device, channels_last=channels_last)
            bias = random(sizes[1:2], dtype, variant.device, channels_last=False) if with_bias else None
            residual = (
                random(sizes, dtype, variant.device, channels_last=not channels_last) if with_residual else None
            )
            before = calls(variant.name)
            y = bias_relu(x, bias, residual, activation=activation)  # type: ignore[arg-type]
            assert calls(variant.name) == before + 1, f"{variant.name} did not run"
            value, magnitude = x.cpu().double(), x.cpu().double().abs()
            if bias is not None:
                in_channels = bias.cpu().double().view(1, -1, *[1] * (len(sizes) - 2))
                value, magnitude = value + in_channels, magnitude + in_channels.abs()
            if residual is not None:
                value, magnitude = value + residual.cpu().double(), magnitude + residual.cpu().double().abs()
            Expected(reference.clamp(value, activation), sum_bound(value, magnitude, 1, dtype)).check(y)
            assert y.is_contiguous(
                memory_format=torch.channels_last if channels_last and len(sizes) == 4 else torch.contiguous_format
            )


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("variant", variants("bias_relu_backward"), ids=lambda variant: variant.name)
def test_backward(
    variant: VariantInfo, sizes: tuple[int, ...], channels_last: bool, use_variant: Use, calls: Calls
) -> None:
    use_variant(variant)
    torch.manual_seed(0)
    for dtype in elementwise_dtypes(variant):
        for activation in ("none", "relu", "relu6"):
            grad = random(sizes, dtype, variant.device, channels_last=channels_last)
            y = reference.clamp(8 * random(sizes, dtype, variant.device, channels_last=channels_last), activation)
            before = calls(variant.name)
            bounds = reference.BOUNDS[activation]
            dx, dbias = torch.ops.pyserve.bias_relu_backward(grad, y, *bounds, True)
            assert calls(variant.name) == before + 1, f"{variant.name} did not run"
            expected = reference.masked(grad.cpu().double(), y.cpu().double(), activation)
            assert torch.equal(dx.cpu().double(), expected)
            dims = [d for d in range(len(sizes)) if d != 1]
            total, magnitude = expected.sum(dims), expected.abs().sum(dims)
            Expected(total, sum_bound(total, magnitude, expected.numel() // sizes[1], dtype)).check(dbias)


@pytest.mark.parametrize("sizes", [(0, 4, 3, 3), (2, 4, 0, 3), (2, 0, 3, 3)], ids=str)
def test_empty(device: str, sizes: tuple[int, ...]) -> None:
    x, bias = (
        torch.zeros(sizes, device=device).requires_grad_(),
        torch.zeros(sizes[1], device=device).requires_grad_(),
    )
    y = bias_relu(x, bias)
    assert y.shape == x.shape
    dx, dbias = torch.autograd.grad(y.sum(), [x, bias])
    assert dx.shape == x.shape
    assert not dbias.any()


def test_nan_stays(device: str) -> None:
    x = torch.tensor([[float("nan"), -1.0, 1.0, float("inf")]], device=device)
    assert bias_relu(x)[0].nan_to_num(7.0, posinf=9.0).tolist() == [7.0, 0.0, 1.0, 9.0]
    assert bias_relu(x, activation="relu6")[0].nan_to_num(7.0).tolist() == [7.0, 0.0, 1.0, 6.0]


def test_the_output_is_never_the_input(device: str) -> None:
    for dtype in (torch.float32, torch.float16):
        x = torch.ones(2, 3, dtype=dtype, device=device)
        assert bias_relu(x, activation="none").data_ptr() != x.data_ptr()
