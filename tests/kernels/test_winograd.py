"""What Winograd's convolution could get wrong where a direct one cannot: spread NaN, overflow, depend on threads.

Its accuracy is tested with the other variants', in test_conv2d.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyserve.kernels import VariantInfo, conv2d
from tests.kernels.support import variants

Use = Callable[[VariantInfo], None]
Calls = Callable[[str], int]

FORWARD = [variant for variant in variants("conv2d") if variant.algorithm in ("winograd", "polyphase")]
DGRAD = [variant for variant in variants("conv2d_dgrad") if variant.algorithm == "winograd"]
each_forward = pytest.mark.parametrize("variant", FORWARD, ids=lambda variant: variant.name)


def direct_of(variant: VariantInfo) -> VariantInfo:
    """The one it leaves a problem to; the direct gradients know no pairs."""
    name = variant.name.replace(variant.algorithm, "direct")
    names = (name, name.removesuffix("_bf16"))
    return next(other for name in names for other in variants(variant.op) if other.name == name)


def stride(variant: VariantInfo) -> int:
    return 2 if variant.algorithm == "polyphase" else 1


def dtype(variant: VariantInfo) -> torch.dtype:
    return torch.bfloat16 if variant.needs == "avx512_bf16" else torch.float32


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 16, 11, 9).to(dtype), torch.randn(20, 16, 3, 3).to(dtype)


@each_forward
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_nan_and_infinity_stay_where_they_belong(
    variant: VariantInfo, value: float, activation: str, use_variant: Use, calls: Calls
) -> None:
    use_variant(variant)
    direct = direct_of(variant).name
    x, weight = inputs(dtype(variant))
    x[1, 5, 4, 3] = value
    before = calls(direct)
    y = conv2d(x, weight, None, stride(variant), 1, activation=activation)  # type: ignore[arg-type]
    assert calls(direct) == before + 1
    bounds = {"none": (None, None), "relu": (0, None), "relu6": (0, 6)}[activation]
    expected = F.conv2d(x, weight, None, stride(variant), 1)
    if bounds != (None, None):
        expected = expected.clamp(*bounds)
    tolerance = 1e-4 if x.dtype is torch.float32 else 2e-2
    torch.testing.assert_close(y, expected, equal_nan=True, atol=tolerance, rtol=tolerance)


@each_forward
def test_nan_in_the_weights(variant: VariantInfo, use_variant: Use) -> None:
    use_variant(variant)
    x, weight = inputs(dtype(variant))
    weight[7, 3, 1, 1] = math.nan
    y = conv2d(x, weight, None, stride(variant), 1)
    assert bool(y[:, 7].isnan().all())
    assert not bool(y[:, torch.arange(20) != 7].isnan().any())


@each_forward
def test_infinity_in_the_residual_is_not_winograds_business(
    variant: VariantInfo, use_variant: Use, calls: Calls
) -> None:
    use_variant(variant)
    x, weight = inputs(dtype(variant))
    residual = torch.zeros_like(F.conv2d(x, weight, None, stride(variant), 1))
    residual[0, 3, 5, 4] = math.inf
    before = calls(direct_of(variant).name)
    y = conv2d(x, weight, None, stride(variant), 1, residual=residual)
    assert calls(direct_of(variant).name) == before
    assert float(y[0, 3, 5, 4]) == math.inf
    assert int(y.isinf().sum()) == 1


@each_forward
@pytest.mark.parametrize("scale", [1e-20, 1e20, 2e36, 1.5e37])
def test_extreme_scales(variant: VariantInfo, scale: float, use_variant: Use) -> None:
    """The last two overflow in the transforms: where the direct sum is finite, so is ours."""
    x, weight = inputs(dtype(variant))
    x *= scale
    use_variant(direct_of(variant))
    direct = conv2d(x, weight, None, stride(variant), 1)
    use_variant(variant)
    y = conv2d(x, weight, None, stride(variant), 1)
    finite = direct.isfinite()
    assert float(finite.float().mean()) > 0.9
    error = (y.double() - direct.double())[finite].norm() / direct.double()[finite].norm()
    assert error < (1e-6 if x.dtype is torch.float32 else 2**-6)


@pytest.mark.parametrize("variant", DGRAD, ids=lambda variant: variant.name)
def test_nan_stays_in_the_gradient(variant: VariantInfo, use_variant: Use, calls: Calls) -> None:
    use_variant(variant)
    direct = direct_of(variant).name
    x, weight = inputs(dtype(variant))
    grad = torch.randn(2, 20, 11, 9).to(x.dtype)
    grad[0, 2, 5, 5] = math.nan
    before = calls(direct)
    args = (None, x, weight, [1, 1], [1, 1], [1, 1], 1, -math.inf, math.inf, [True, False, False, False])
    dx = torch.ops.pyserve.conv2d_backward(grad, *args)[0]
    assert calls(direct) == before + 1
    expected = torch.nn.grad.conv2d_input(x.shape, weight, grad, padding=1)
    tolerance = 1e-4 if x.dtype is torch.float32 else 2e-2
    torch.testing.assert_close(dx, expected, equal_nan=True, atol=tolerance, rtol=tolerance)


@each_forward
@pytest.mark.parametrize("sizes", [(4, 16, 29, 20), (1, 176, 14, 180), (1, 24, 57, 72)], ids=str)
def test_the_output_does_not_depend_on_the_number_of_threads(
    variant: VariantInfo, sizes: tuple[int, int, int, int], use_variant: Use
) -> None:
    use_variant(variant)
    N, C, size, K = sizes
    torch.manual_seed(0)
    x, weight = torch.randn(N, C, size, size), torch.randn(K, C, 3, 3)
    x, weight = x.to(dtype(variant)), weight.to(dtype(variant))
    threads = torch.get_num_threads()
    try:
        outputs = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outputs.append(conv2d(x, weight, None, stride(variant), 1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
