"""What only a GPU shows: streams, graphs, devices, TF32, sizes beyond 32 bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyserve.kernels import batch_norm_relu, bias_relu, conv2d, info
from pyserve.kernels.pooled import conv2d_pool
from pyserve.kernels.statistics import conv2d_statistics
from tests.kernels import reference
from tests.kernels.cases import square
from tests.kernels.reference import Tensors
from tests.kernels.support import NEEDS_GPU, numbers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason=NEEDS_GPU)
LAST = torch.channels_last


def step(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """A forward and a backward pass of all operators: y and the gradients."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y = bias_relu(conv2d(*leaves, stride=2, padding=1, activation="relu"), activation="relu6")
    y = batch_norm_relu(y, None, None, training=True, residual=y)
    y = conv2d(y, leaves[1].mean((2, 3), keepdim=True).transpose(0, 1), activation="relu")  # 1×1
    y, statistics = conv2d_statistics(y, leaves[1], leaves[2], 1, 1, 1, 1)
    y = batch_norm_relu(y, None, None, training=True, statistics=statistics)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]


def tensors(dtype: torch.dtype, device: str = "cuda") -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 24, 17, 19).to(device, dtype).contiguous(memory_format=LAST)
    return x, torch.randn(40, 24, 3, 3).to(device, dtype), torch.randn(40).to(device, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_step_is_captured_in_a_graph(dtype: torch.dtype) -> None:
    inputs = tensors(dtype)
    expected = step(*inputs)
    static = [t.clone() for t in inputs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*static)
    for t in static:
        t.zero_()
    graph.replay()
    for t, value in zip(static, inputs, strict=True):
        t.copy_(value)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_the_current_stream_is_used() -> None:
    """The input is made on a side stream, late: a kernel on another stream would come too early."""
    x, weight, bias = tensors(torch.bfloat16)
    expected = step(x, weight, bias)
    side = torch.cuda.Stream()
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        got = step(late, weight, bias)
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_results_are_the_same_every_time() -> None:
    x, weight, bias = (
        t.repeat(16, 1, 1, 1) if t.dim() == 4 and t.shape[0] == 4 else t for t in tensors(torch.bfloat16)
    )
    first = step(x, weight, bias)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(step(x, weight, bias), first, strict=True))


def test_deterministic_mode_refuses_nothing() -> None:
    """Our operators have no other mode: nothing raises, nothing warns, results are the same every time."""
    before = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        x, weight, bias = tensors(torch.bfloat16)
        first = step(x, weight, bias)
        assert all(torch.equal(a, b) for a, b in zip(step(x, weight, bias), first, strict=True))
    finally:
        torch.use_deterministic_algorithms(True, warn_only=before)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_device_of_the_tensors_is_used() -> None:
    with torch.cuda.device(0):
        got = step(*tensors(torch.bfloat16, "cuda:1"))
    assert all(t.device == torch.device("cuda:1") for t in got)
    expected = step(*tensors(torch.bfloat16, "cuda:0"))
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(got, expected, strict=True))


def test_tf32_where_torch_allows_it(calls: Callable[[str], int]) -> None:
    t = Tensors.random(square(2, 64, 14, 64, 3, 1, 1), torch.float32, post_relu=False, device="cuda")
    before = calls("conv2d_mma_sm80")
    conv2d(t.x, t.weight, None, *numbers(t.case))
    assert calls("conv2d_mma_sm80") == before
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    y = conv2d(t.x, t.weight, None, *numbers(t.case))
    assert calls("conv2d_mma_sm80") == before + 1
    d = t.double()
    exact = reference.conv2d(d.x, d.weight, t.case)
    magnitude = reference.conv2d(d.x.abs(), d.weight.abs(), t.case)
    assert bool(((y.cpu().double() - exact).abs() <= 2.0**-10 * magnitude).all())


def test_tf32_where_a_first_layer_is_pooled(calls: Callable[[str], int]) -> None:
    t = Tensors.random(square(2, 3, 57, 64, 7, 2, 3), torch.float32, post_relu=False, device="cuda")
    before = calls("conv2d_stem_sm80")
    conv2d_pool(t.x, t.weight, t.bias, *numbers(t.case), (3, 2, 1))
    assert calls("conv2d_stem_sm80") == before
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    y = conv2d_pool(t.x, t.weight, t.bias, *numbers(t.case), (3, 2, 1))
    assert calls("conv2d_stem_sm80") == before + 1
    d = t.double()
    whole = reference.conv2d(d.x, d.weight, t.case) + d.bias.view(1, -1, 1, 1)
    magnitude = F.max_pool2d(reference.conv2d(d.x.abs(), d.weight.abs(), t.case), 3, 2, 1)
    assert bool(((y.cpu().double() - F.max_pool2d(whole, 3, 2, 1)).abs() <= 2.0**-10 * magnitude).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_takes_the_tensor_cores(dtype: torch.dtype, calls: Callable[[str], int]) -> None:
    x, weight, bias = tensors(torch.float32)
    before = calls("conv2d_mma_sm80")
    with torch.autocast("cuda", dtype):
        y = conv2d(x, weight, bias)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=LAST)
    assert calls("conv2d_mma_sm80") == before + 1
    torch.testing.assert_close(y.float(), F.conv2d(x, weight, bias), atol=0.3, rtol=0.03)


def test_float16_on_the_gpu_does_not_fall_back() -> None:
    before = info().fallbacks
    step(*tensors(torch.float16))
    assert info().fallbacks == before


def test_more_than_32_bits_of_elements() -> None:
    """8.6 GB of input; the last rows are compared with a convolution of these rows alone."""
    side = 16_400
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    torch.utils.deterministic.fill_uninitialized_memory = False
    x = torch.empty(1, 8, side, side, dtype=torch.bfloat16, device="cuda", memory_format=LAST).fill_(0.5)
    x[:, :, -8:] = torch.randn(1, 8, 8, side, dtype=torch.bfloat16, device="cuda")
    assert x.numel() > 2**31
    weight = torch.randn(8, 8, 2, 2, dtype=torch.bfloat16, device="cuda")
    y = conv2d(x, weight, stride=2)
    assert torch.equal(y[:, :, -4:], conv2d(x[:, :, -8:].contiguous(memory_format=LAST), weight, stride=2))
    z = bias_relu(x)
    assert torch.equal(z[:, :, -8:], x[:, :, -8:].relu())
    del y, z
    mean, var = torch.zeros(8, device="cuda"), torch.ones(8, device="cuda")
    z = batch_norm_relu(x, mean, var, eps=0.0)
    assert torch.equal(z[:, :, -8:], x[:, :, -8:].relu())
