"""A convolution that gives the BatchNorm after it the statistics of its output: operators, layers, fuse."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyserve.kernels import BatchNorm2d, batch_norm_relu, fuse, layers
from pyserve.kernels.statistics import conv2d_statistics
from tests.kernels.support import NEEDS_GPU
from tests.kernels.test_training import Block

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Convolutions give statistics on every device, not only where it is quicker; the inputs they did it for."""
    seen: list[Tensor] = []
    monkeypatch.setattr(layers, "gives_statistics", lambda x: seen.append(x) or True)
    return seen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_statistics_are_those_of_the_output(device: str, dtype: torch.dtype) -> None:
    x, weight = torch.randn(3, 16, 9, 7, dtype=dtype, device=device), torch.randn(24, 16, 3, 3, dtype=dtype)
    bias = torch.linspace(-20, 20, 24, dtype=dtype, device=device)
    y, (mean, var) = conv2d_statistics(x, weight.to(device), bias, 2, 1, 1, 1)
    plain = F.conv2d(x.double(), weight.to(device).double(), bias.double(), 2, 1)
    error = (y.double() - plain).norm() / plain.norm()
    assert error < (1 / 64 if dtype is torch.bfloat16 else 1e-4)  # the bound of Winograd's own tests
    torch.testing.assert_close(mean.double(), y.double().mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(var.double(), y.double().var((0, 2, 3), correction=0), atol=1e-5, rtol=1e-5)
    assert mean.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)


def conv_and_norm(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, residual: Tensor) -> Tensor:
    y, statistics = conv2d_statistics(x, weight, bias, 1, 1, 1, 1)
    return batch_norm_relu(y, None, None, scale, None, True, residual=residual, statistics=statistics)


def leaves(dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    sizes = ([2, 3, 4, 5], [4, 3, 3, 3], [4], [4], [2, 4, 4, 5])
    return [torch.randn(s, dtype=dtype, device=device).requires_grad_() for s in sizes]


def test_gradcheck(device: str) -> None:
    """The gradient flows through the statistics, though they are handed over as numbers."""
    tensors = leaves(torch.float64, device)
    assert torch.autograd.gradcheck(conv_and_norm, tensors)
    assert torch.autograd.gradgradcheck(conv_and_norm, tensors)


def test_opcheck(device: str) -> None:
    x, weight, bias, *_ = leaves(torch.float32, device)
    numbers = ([1, 1], [1, 1], [1, 1], 1)
    torch.library.opcheck(torch.ops.pyserve.conv2d_statistics.default, (x, weight, bias, *numbers))
    torch.library.opcheck(torch.ops.pyserve.conv2d_statistics.default, (x.detach()[:0], weight, None, *numbers))
    mean, var = torch.randn(3, device=device), torch.rand(3, device=device)
    given = (x, None, None, None, mean, var, 1e-5, 0.0, 6.0, True)
    torch.library.opcheck(torch.ops.pyserve.batch_norm_relu.default, given)


def test_known_statistics_change_nothing(device: str) -> None:
    """Outputs, gradients and running statistics are those of a BatchNorm that finds the statistics itself."""
    x = torch.randn(4, 6, 5, 3, device=device) + 3
    grad, results = torch.randn_like(x), []
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    for statistics in (None, (mean, var)):
        norm, leaf = BatchNorm2d(6).to(device), x.clone().requires_grad_()
        y = norm(leaf, None, "relu", statistics)
        results.append([y.detach(), *torch.autograd.grad(y, [leaf, norm.weight, norm.bias], grad)])
        results[-1] += [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------ fuse


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """A forward and a backward pass; the output, the gradients, the state."""
    model.zero_grad()
    y = model(x)
    y.square().mean().backward()
    return [y.detach(), *(p.grad for p in model.parameters()), *(b.double() for b in model.buffers())]


def same(ours: list[Tensor], torchs: list[Tensor]) -> None:
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_fuse_joins_them(everywhere: list[Tensor]) -> None:
    model = nn.Sequential(Block(8), nn.Conv2d(8, 12, 3, 2), nn.BatchNorm2d(12), nn.ReLU6())
    plain = copy.deepcopy(model)
    ours = fuse(model, inference=False)
    for _ in range(3):
        x = torch.randn(4, 8, 7, 7).contiguous(memory_format=torch.channels_last)
        same(step(ours, x), step(plain, x))
    assert len(everywhere) == 9
    plain.eval(), ours.eval()
    torch.testing.assert_close(ours(x), plain(x), atol=1e-4, rtol=1e-4)
    assert len(everywhere) == 9
    again = fuse(ours.train(), inference=False)
    same(step(again, x), step(plain.train(), x))
    assert len(everywhere) == 12
    torch.testing.assert_close(fuse(again, inference=True)(x), plain.eval()(x), atol=1e-4, rtol=1e-4)


def test_compile_without_a_break(everywhere: list[Tensor]) -> None:
    ours = fuse(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), inference=False)
    x = torch.randn(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    twin = copy.deepcopy(ours)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    same(step(compiled, x), step(twin, x))


def test_where_somebody_watches_they_stay_apart(everywhere: list[Tensor]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    ours = fuse(model, inference=False)
    conv, norm = ours.get_submodule("0"), ours.get_submodule("1")
    x, shapes = torch.randn(2, 3, 6, 6), []
    handle = conv.register_forward_hook(lambda module, args, y: shapes.append(y.shape))
    ours(x)
    assert shapes == [(2, 6, 4, 4)]
    handle.remove()
    norm.eval()  # a frozen BatchNorm takes its running statistics
    running = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    torch.testing.assert_close(ours(x), F.relu(F.batch_norm(F.conv2d(x, conv.weight, conv.bias), *running)))
    assert not everywhere
    norm.train()
    ours(x)
    assert len(everywhere) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason=NEEDS_GPU)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_on_a_gpu_the_tensor_cores_give_them(dtype: torch.dtype) -> None:
    model = nn.Sequential(Block(64), nn.Conv2d(64, 128, 1, 2), nn.BatchNorm2d(128), nn.ReLU()).cuda()
    ours = fuse(copy.deepcopy(model), inference=False).to(memory_format=torch.channels_last)
    x = torch.randn(8, 64, 14, 14, device="cuda").contiguous(memory_format=torch.channels_last)
    with torch.autocast("cuda", dtype):
        got, expected = step(ours, x), step(model, x)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.float(), other.float(), atol=0.05, rtol=0.05)
