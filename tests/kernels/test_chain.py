"""Chains: that they run, give what the single layers give, and notice what they must notice."""

from __future__ import annotations

import copy
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyserve.errors import InvalidArgumentError
from pyserve.kernels import FusedModel, fuse, info
from pyserve.kernels._extension import C
from pyserve.kernels.chain import Chain
from pyserve.kernels.plan import Plan, Value, place_values
from tests.kernels.support import float32_isa


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Net(nn.Module):
    """Everything that a chain can do, in odd sizes."""

    def __init__(self, channels: int = 19) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.wide = nn.Conv2d(channels, 2 * channels, (1, 3), (2, 1), (0, 1), bias=False)
        self.depth = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.average = nn.AdaptiveAvgPool2d((3, 2))
        self.drop = nn.Dropout(0.5)
        self.first, self.last = nn.Linear(12 * channels, 21), nn.Linear(21, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(self.stem(x))))
        y = F.relu(self.conv1(x))
        y = F.relu(self.conv2(y) + x)
        z = F.relu6(self.depth(self.wide(y)) + self.wide(x))
        z = torch.flatten(self.average(z), 1)
        out: Tensor = self.last(self.drop(F.relu(self.first(z))))
        return out


def net() -> nn.Module:
    model = Net()
    nn.init.normal_(model.norm.running_mean)  # type: ignore[arg-type]
    nn.init.uniform_(model.norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    return model.eval()


def chained(model: FusedModel, *inputs: Any) -> Any:
    """The model's answer, that chains have given."""
    before = C.chain_calls()
    with torch.inference_mode():
        y = model(*inputs)
    assert C.chain_calls() > before, "no chain ran"
    return y


def test_sizes_and_batches() -> None:
    model = net()
    fused = fuse(model, inference=True)
    for sizes in ((1, 3, 33, 41), (3, 3, 33, 41), (2, 3, 40, 30), (1, 3, 33, 41)):
        x = torch.randn(sizes)
        with torch.no_grad():
            expected = model(x)
        torch.testing.assert_close(chained(fused, x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("N", [2, 6, 7])
def test_large_maps_go_image_by_image(N: int) -> None:
    model, x = Net(67).eval(), torch.randn(N, 3, 240, 290)
    fused = fuse(model, inference=True)
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(chained(fused, x), expected, atol=1e-4, rtol=1e-4)
    small, large = (_plan_of(fused, x[:n]).workspace_bytes for n in (1, N))
    assert small < large < N * small


def _plan_of(fused: FusedModel, x: Tensor) -> Plan:
    chained(fused, x)
    (chain,) = (value for value in vars(fused).values() if isinstance(value, Chain))
    return chain._plan((x,))


def test_the_chains_agree_with_the_single_layers() -> None:
    fused = fuse(net(), inference=True)
    x = torch.randn(2, 3, 35, 35)
    y = chained(fused, x)
    with torch.no_grad():
        single = fused.double()(x.double())  # chains do not know float64
    torch.testing.assert_close(y.double(), single, atol=1e-5, rtol=1e-5)


def test_bfloat16() -> None:
    model = net()
    x = torch.randn(2, 3, 33, 41)
    y = chained(fuse(model, inference=True).bfloat16(), x.bfloat16())
    assert y.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(y.float(), model(x), atol=0.03, rtol=0.03)


def test_whatever_the_layout_and_the_number_of_threads() -> None:
    fused = fuse(net(), inference=True)
    x = torch.randn(3, 3, 37, 33)
    threads = torch.get_num_threads()
    outputs = []
    try:
        for count in (1, 2, 3, 16):
            torch.set_num_threads(count)
            outputs.append(chained(fused, x.contiguous(memory_format=torch.channels_last)))
            outputs.append(chained(fused, x))
            outputs.append(chained(fused, x.transpose(2, 3).contiguous().transpose(2, 3)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(outputs[0], y) for y in outputs[1:])


class Parts(nn.Module):
    """Values used in many places, between layers that no chain knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        a = self.conv(x)
        b = self.pool(F.relu(a))
        c = F.gelu(b) * scale
        d = self.conv(c) + c
        return a, b, self.pool(d) + self.pool(a * 2)[:, :, ::2, ::2]


def test_several_chains_with_several_outputs() -> None:
    model = Parts().eval()
    fused = fuse(model, inference=True)
    x = torch.randn(2, 4, 8, 12)
    with torch.no_grad():
        expected = model(x, scale=3.0)
    before = info().chain_calls
    with torch.inference_mode():
        got = fused(x, scale=3.0)
    assert info().chain_calls == before + 2
    for ours, torchs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, torchs, atol=1e-5, rtol=1e-5)
        assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_go_through_the_pools(value: float) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d((2, 3))).eval()
    x = torch.randn(1, 3, 9, 9)
    x[0, :, 4, 5] = value
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(chained(fuse(model, inference=True), x), expected, equal_nan=True)


@pytest.mark.parametrize("value", [0.0, float("nan")])
@pytest.mark.parametrize("pool", [(2, 2, 0), (3, 2, 1), (3, 1, 0), (4, 3, 2)], ids=str)
@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1), (3, 2)])
def test_pooling_in_the_first_layer(kernel: int, stride: int, pool: tuple[int, int, int], value: float) -> None:
    conv = nn.Conv2d(3, 70, kernel, stride, kernel // 2)
    model = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(*pool)).eval()
    x = torch.randn(2, 3, 30, 37)
    x[1, 2, 14, 20] = value
    fused = fuse(model, inference=True)
    kernel_name = "conv2d_stem" if kernel == 7 else "conv2d_shallow"
    name, pooling = (f"{of}_{float32_isa(info().isa_in_use)}" for of in (kernel_name, "max_pool2d_direct"))
    C.reset_counters()
    y = chained(fused, x)
    # Winograd's transforms spread what is not finite: such an image is left to the direct kernel.
    expected = {name} if value == 0 or kernel == 3 else {name, name.replace("stem", "direct"), pooling}
    assert set(info().calls) == (expected if info().isa_in_use != "scalar" else set(info().calls))
    with torch.no_grad():
        torch.testing.assert_close(y, model(x), equal_nan=True, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------ what must be noticed


def simple() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)).eval()


def test_changed_weights_are_packed_again() -> None:
    model = simple()
    fused = fuse(model, inference=True)
    x = torch.randn(1, 16, 8, 8)
    conv = fused.get_submodule("0")
    assert isinstance(conv, nn.Conv2d)
    for change in (
        lambda: conv.weight.mul_(2),
        lambda: conv.bias.add_(1),  # type: ignore[union-attr]
        lambda: setattr(conv, "weight", nn.Parameter(torch.randn(16, 16, 3, 3))),
        lambda: fused.load_state_dict(model.state_dict()),
    ):
        chained(fused, x)
        with torch.no_grad():
            change()
            expected = F.max_pool2d(F.conv2d(x, conv.weight, conv.bias, padding=1).relu(), 2)
        torch.testing.assert_close(chained(fused, x), expected, atol=1e-5, rtol=1e-5)


def test_folded_weights_are_packed_again() -> None:
    model, other = net(), net()
    fused = fuse(model, inference=True)
    x = torch.randn(1, 3, 33, 33)
    chained(fused, x)
    fused.load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(chained(fused, x), other(x), atol=1e-5, rtol=1e-5)


def test_hooks_see_their_layers() -> None:
    fused = fuse(simple(), inference=True)
    x = torch.randn(1, 16, 8, 8)
    expected = chained(fused, x)
    seen: list[nn.Module] = []
    handle = fused.get_submodule("0").register_forward_hook(lambda module, *_: seen.append(module))
    before = C.chain_calls()
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), expected)
    assert seen == [fused.get_submodule("0")]
    assert C.chain_calls() == before
    handle.remove()
    chained(fused, x)


def test_inputs_that_want_gradients() -> None:
    model = simple()
    x = torch.randn(1, 16, 8, 8, requires_grad=True)
    (ours,) = torch.autograd.grad(fuse(model, inference=True)(x).sum(), x)
    (torchs,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(ours, torchs, atol=1e-5, rtol=1e-5)


def test_what_a_chain_does_not_take() -> None:
    model = simple()
    fused = fuse(model, inference=True)
    with torch.no_grad():
        x = torch.randn(16, 8, 8)
        torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-5)
        assert fused(torch.randn(0, 16, 8, 8)).shape == (0, 16, 4, 4)
        with pytest.raises(InvalidArgumentError, match="conv2d: weight has 16 input channels"):
            fused(torch.randn(1, 15, 8, 8))


def test_copies_and_pickles() -> None:
    fused = fuse(net(), inference=True)
    x = torch.randn(2, 3, 33, 33)
    y = chained(fused, x)
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):  # noqa: S301  # our own bytes
        assert torch.equal(chained(twin, x), y)
        twin.get_submodule("last").bias.data.add_(1)  # type: ignore[union-attr, operator]
    assert torch.equal(chained(fused, x), y)


def test_many_threads_at_once() -> None:
    fused = fuse(net(), inference=True)
    inputs = [torch.randn(n, 3, 33, 33) for n in (1, 2, 3, 4)]
    expected = [chained(fused, x) for x in inputs]

    def answer(i: int) -> bool:
        with torch.inference_mode():
            return torch.equal(fused(inputs[i % 4]), expected[i % 4])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(answer, range(64)))


# ------------------------------------------------------------ memory


def test_values_that_live_together_lie_apart() -> None:
    rng = random.Random(0)
    for _ in range(50):
        values = []
        for i in range(rng.randint(1, 12)):
            first = rng.randint(0, 8)
            sizes = (1, rng.randint(1, 9), rng.randint(1, 9), rng.randint(1, 40))
            values.append(Value(sizes, 4, "workspace", -i, first, first + rng.randint(0, 4)))
        size = place_values(values, 4)
        for i, a in enumerate(values):
            assert 0 <= a.at <= size - 4 * a.numel
            for b in values[:i]:
                together = a.first <= b.last and b.first <= a.last
                assert not together or a.at >= b.at + 4 * b.numel or b.at >= a.at + 4 * a.numel
        assert size <= sum(-(-4 * value.numel // 64) * 64 for value in values)


def test_scratch_memory_is_told_and_given_back() -> None:
    chained(fuse(net(), inference=True), torch.randn(1, 3, 33, 33))
    before = info().workspace
    assert before.held_bytes > 0
    assert before.lent_bytes == 0
    assert before.most_held_bytes >= before.held_bytes
    C.release_workspace()
    assert info().workspace.held_bytes == 0


@pytest.mark.parametrize(
    ("program", "what"),
    [
        ([], "is cut off"),
        ([2, 1, 0, 0, 0], "element type"),
        ([0, 1, 0, 1, 0, 2, 0, 4, 1, 2, 2, 3], "outside of its workspace"),
        ([0, 1, 64, 1, 1, 2, 0, 4, 1, 1, 1, 3, 5, 1, 2, 0, 7], "names a value that it does not have"),
        ([0, 1, 64, 1, 1, 2, 0, 4, 1, 1, 1, 3, 9, 1, 2, 0, 0], "unknown step"),
        ([0, 1, 64, 1, 1, 2, 0, 4, 1, 1, 1, 3, 0, 1, 3, 0, 0, -1], "is cut off"),
        ([0, 4, 64, 1, 1, 2, 0, 4, 4, 1, 1, 3, 5, 3, 2, 0, 0], "does not divide"),
        ([0, 4, 64, 1, 1, 2, 0, 4, 3, 1, 1, 1, 5, 2, 2, 0, 0], "value of other images"),
    ],
    ids=str,
)
def test_a_wrong_program_is_refused(program: list[int], what: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=f"run_chain: the program .*{what}"):
        torch.ops.pyserve.run_chain([torch.zeros(1)], [], torch.tensor(program, dtype=torch.int64))
