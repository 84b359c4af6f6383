"""A first layer with the max pooling after it: operator, variants, layers, fuse."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyserve.errors import InvalidArgumentError
from pyserve.kernels import VariantInfo, fuse, info
from pyserve.kernels._extension import C
from pyserve.kernels.calls import Activation
from pyserve.kernels.pooled import conv2d_pool
from tests.kernels import reference
from tests.kernels.cases import POOLED, RESNETS, Case, Window, square
from tests.kernels.reference import Tensors
from tests.kernels.support import covered_dtypes, numbers, variants

LAST = torch.channels_last
WAYS = [
    (variant, case, window)
    for variant in variants("conv2d")
    for case, window in POOLED
    if covered_dtypes(variant, case, window)
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_no_other_variant_would_forget_the_pooling() -> None:
    names = {variant.name for variant, *_ in WAYS}
    assert "conv2d_stem_sm80" in names
    assert all(name.startswith(("conv2d_stem_", "conv2d_shallow_")) for name in names)


@pytest.mark.parametrize(
    ("variant", "case", "window"), WAYS, ids=[f"{v.device}-{v.name}-{c}-{window}" for v, c, window in WAYS]
)
def test_every_variant(
    variant: VariantInfo,
    case: Case,
    window: Window,
    use_variant: Callable[[VariantInfo], None],
    calls: Callable[[str], int],
) -> None:
    use_variant(variant)
    activations: list[Activation] = ["relu", "relu6", "none"]
    for dtype, activation in zip(covered_dtypes(variant, case, window), activations, strict=False):
        before = calls(variant.name)
        t = Tensors.random(case, dtype, post_relu=False, device=variant.device)
        y = conv2d_pool(t.x, t.weight, t.bias, *numbers(case), window, activation)
        assert calls(variant.name) == before + 1, f"{variant.name} did not run"
        own = reference.onednn if variant.device == "cpu" and dtype is torch.float32 else None
        whole = own(t.x, t.weight, case.padding, case.stride) if own else reference.conv2d(t.x, t.weight, case)
        torchs = F.max_pool2d(reference.clamp(whole + t.bias.view(1, -1, 1, 1), activation), *window)
        expected = reference.expected_pooled(t, window, activation)
        expected.check_norm(y, torchs) if own else expected.check(y, torchs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("case", "window"),
    [(square(2, 8, 12, 6, 3, 1, 1), (3, 2, 1)), (square(2, 3, 40, 6, 7, 2, 3), (5, 2, 2))],
    ids=str,
)
def test_what_no_variant_pools_is_pooled_after(
    device: str, case: Case, window: Window, dtype: torch.dtype
) -> None:
    t = Tensors.random(case, dtype, post_relu=False, device=device)
    y = conv2d_pool(t.x, t.weight, t.bias, *numbers(case), window, "relu")
    torchs = F.max_pool2d(F.conv2d(t.x, t.weight, t.bias, *numbers(case)).relu(), *window)
    reference.expected_pooled(t, window, "relu").check(y, torchs)


def test_the_memory_format_is_that_of_x(device: str) -> None:
    x, weight = torch.randn(2, 3, 30, 34, device=device), torch.randn(8, 3, 7, 7, device=device)
    for channels in (slice(None), slice(1)):  # with a kernel, and without one
        for memory_format in (LAST, torch.contiguous_format):
            given = x[:, channels].contiguous(memory_format=memory_format)
            y = conv2d_pool(given, weight[:, channels], None, 2, 3, 1, 1, RESNETS)
            assert y.is_contiguous(memory_format=memory_format)
    assert conv2d_pool(x[:0], weight, None, 2, 3, 1, 1, RESNETS).shape == (0, 8, 8, 9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_and_infinity(device: str, dtype: torch.dtype, value: float) -> None:
    x = torch.ones(1, 3, 40, 40, dtype=dtype, device=device)
    x[0, 1, 20, 12] = value
    weight = torch.ones(8, 3, 7, 7, dtype=dtype, device=device)
    y = conv2d_pool(x, weight, None, 2, 3, 1, 1, RESNETS)
    expected = F.max_pool2d(F.conv2d(x, weight, None, 2, 3), *RESNETS)
    assert torch.equal(y.isfinite(), expected.isfinite())
    assert torch.equal(y.isnan(), expected.isnan())


def test_what_is_refused(device: str) -> None:
    x, weight = torch.randn(1, 3, 16, 16, device=device), torch.randn(8, 3, 7, 7, device=device)
    with pytest.raises(InvalidArgumentError, match="conv2d"):
        conv2d_pool(x, weight[:, :2], None, 2, 3, 1, 1, RESNETS)
    for window in ((0, 1, 0), (3, 0, 1), (3, 2, 2), (3, 2, -1), (9, 2, 0)):
        with pytest.raises(RuntimeError):
            conv2d_pool(x, weight, None, 2, 3, 1, 1, window)


def test_the_choice_tells_of_the_pooling() -> None:
    C.reset_counters()  # so many choices are remembered, and no more
    conv2d_pool(torch.randn(1, 3, 22, 26), torch.randn(7, 3, 7, 7), None, 2, 3, 1, 1, RESNETS)
    told = [choice for choice in info().choices if "K 7 kernel 7×7 on 22×26" in choice.problem]
    assert len(told) == 1
    assert told[0].problem.endswith("max pooling 3×3 stride 2 padding 1")


def test_opcheck(device: str) -> None:
    x, weight, bias = (torch.randn(s, device=device) for s in ([2, 3, 20, 17], [8, 3, 7, 7], [8]))
    given = ([2, 2], [3, 3], [1, 1], 1, [3, 2, 1], 0.0, math.inf)
    for tensors in ((x, weight, bias), (x.to(memory_format=LAST), weight, None), (x[:0], weight, None)):
        torch.library.opcheck(torch.ops.pyserve.conv2d_pool.default, (*tensors, *given))


# ------------------------------------------------------------ fuse


class Stem(nn.Module):
    """As a ResNet begins, with a layer behind."""

    def __init__(self, window: tuple[int, int, int] = RESNETS, **options: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.pool = nn.MaxPool2d(*window, **options)
        self.last = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 4]."""
        y: Tensor = self.last(self.pool(F.relu(self.norm(self.conv(x))))).mean((2, 3))
        return y


def fused(model: nn.Module, device: str) -> nn.Module:
    """The inference form, by its single layers also on a CPU."""
    ours = fuse(model.eval(), inference=True).to(device)
    ours.register_module("watched", nn.Identity())
    ours.get_submodule("watched").register_forward_hook(lambda *_: None)  # then there are no chains
    return ours


def pooled_calls() -> int:
    return sum(count for name, count in info().calls.items() if "_stem_" in name)


def gpu_type(device: str) -> torch.dtype:
    """Of what a kernel pools on a device without further settings."""
    return torch.float32 if device == "cpu" else torch.bfloat16


def test_fuse_takes_the_pooling(device: str) -> None:
    model = Stem().eval()
    ours, x = fused(copy.deepcopy(model), device).to(gpu_type(device)), torch.randn(2, 3, 40, 44)
    before = pooled_calls()
    y = ours(x.to(device, gpu_type(device)))
    assert pooled_calls() == before + 1
    tolerance = 1e-4 if device == "cpu" else 0.05
    torch.testing.assert_close(y.cpu().float(), model(x), atol=tolerance, rtol=tolerance)
    again = fuse(fuse(ours, inference=True), inference=True)  # a copy of a copy
    assert torch.equal(again(x.to(device, gpu_type(device))), y)


def test_a_chain_still_takes_it() -> None:
    ours, x = fuse(Stem().eval(), inference=True), torch.randn(2, 3, 40, 44)
    before, chains = pooled_calls(), info().chain_calls
    ours(x)
    assert (pooled_calls(), info().chain_calls) == (before + 1, chains + 1)


@pytest.mark.parametrize(
    "model", [Stem(ceil_mode=True), Stem(dilation=2), Stem((3, 2, 0)), nn.Sequential(Stem(), nn.Flatten())]
)
def test_other_poolings_stay_right(model: nn.Module, device: str) -> None:
    x = torch.randn(2, 3, 41, 45, device=device)
    ours = fused(copy.deepcopy(model), device)
    torch.testing.assert_close(ours(x), model.to(device).eval()(x), atol=1e-4, rtol=1e-4)


def test_where_somebody_watches_they_stay_apart(device: str) -> None:
    ours, x = fused(Stem(), device).to(gpu_type(device)), torch.randn(2, 3, 40, 44).to(device, gpu_type(device))
    expected, shapes = ours(x), []
    handle = ours.get_submodule("pool").register_forward_hook(lambda _, args, y: shapes.append(args[0].shape))
    before = pooled_calls()
    torch.testing.assert_close(ours(x), expected, atol=1e-2, rtol=1e-2)
    assert shapes == [(2, 12, 20, 22)]
    handle.remove()
    (gradient,) = torch.autograd.grad(ours(x.requires_grad_()).sum(), x)
    assert bool(gradient.abs().sum() > 0)
    with torch.no_grad():
        assert torch.equal(ours(x), expected)
    assert pooled_calls() >= before + 1


def test_autocast(device: str) -> None:
    model, x = fused(Stem(), device), torch.randn(2, 3, 40, 44, device=device)
    before = pooled_calls()
    with torch.autocast(device, torch.bfloat16):
        y = model(x)
    assert pooled_calls() == before + 1
    assert y.dtype is torch.bfloat16


def test_compile_without_a_break(device: str) -> None:
    ours = fuse(Stem().eval(), inference=True).to(device)
    x = torch.randn(2, 3, 40, 44, device=device).contiguous(memory_format=LAST)
    compiled = torch.compile(copy.deepcopy(ours), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), ours(x), atol=1e-4, rtol=1e-4)
