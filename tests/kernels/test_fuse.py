"""`fuse` pattern by pattern; `tests/models/test_fused.py` has the registered networks."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyserve.errors import InvalidArgumentError
from pyserve.kernels import AddReLU, BatchNorm2d, Conv2d, FusedModel, fuse
from pyserve.kernels.layers import FoldedConv2d


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        yield


def conv(C: int = 4, K: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(C, K, 3, padding=1, **options)


def norm(channels: int = 4) -> nn.BatchNorm2d:
    """A BatchNorm that does something, and does much where it is wrong."""
    module = nn.BatchNorm2d(channels)
    assert module.running_mean is not None
    assert module.running_var is not None
    module.running_mean.normal_()
    module.running_var.uniform_(0.5, 2)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    return module


class Net(nn.Module):
    """Two convolutions with BatchNorm, and a forward of the test's making."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = conv(), norm(), conv(), norm()
        self.relu, self.relu_, self.relu6 = nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(inplace=True)
        self.what = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self, x)


def residual(add: Callable[[Tensor, Tensor], Tensor], activate: Callable[[Net, Tensor], Tensor]) -> Any:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.bn2(net.conv2(net.relu(net.bn1(net.conv1(x)))))
        return activate(net, add(y, x))

    return forward


def also_adds_later(net: Net, x: Tensor) -> Tensor:
    y = net.bn1(net.conv1(x))
    z = net.bn2(net.conv2(x))
    return net.relu(y + z) + z


def changed_in_place(net: Net, x: Tensor) -> Tensor:
    y = net.bn1(net.conv1(x))
    z = net.relu_(y)
    return z + y  # y is z by now


def view_changed_in_place(net: Net, x: Tensor) -> Tensor:
    y = net.bn1(net.conv1(x))
    net.relu_(y[:, :2])
    return y


def added_in_place_and_used(net: Net, x: Tensor) -> Tensor:
    y = net.bn1(net.conv1(x))
    z = y
    z += net.bn2(net.conv2(x))
    return F.relu(z) - y


def input_changed_between(net: Net, x: Tensor) -> Tensor:
    x = x * 2
    y = net.bn1(net.conv1(x))
    x *= -1  # the convolution has seen the x before, and must not move here
    return F.relu(y + x)


def shared(net: Net, x: Tensor) -> Tensor:
    return net.relu(net.bn2(net.conv1(net.relu(net.bn1(net.conv1(x))))))


def shared_norm(net: Net, x: Tensor) -> Tensor:
    return net.relu(net.bn1(net.conv2(net.relu(net.bn1(net.conv1(x))))))


# a forward → how often the inference form calls: folded convolution, plain one, BatchNorm, AddReLU
PATTERNS: dict[str, tuple[Any, tuple[int, int, int, int]]] = {
    "conv": (lambda net, x: net.conv1(x), (0, 1, 0, 0)),
    "conv relu": (lambda net, x: net.relu(net.conv1(x)), (0, 1, 0, 0)),
    "conv relu in place": (lambda net, x: net.relu_(net.conv1(x)), (0, 1, 0, 0)),
    "conv bn": (lambda net, x: net.bn1(net.conv1(x)), (1, 0, 0, 0)),
    "conv bn relu": (lambda net, x: net.relu(net.bn1(net.conv1(x))), (1, 0, 0, 0)),
    "conv bn relu6": (lambda net, x: net.relu6(net.bn1(net.conv1(x))), (1, 0, 0, 0)),
    "torch.relu": (lambda net, x: torch.relu(net.bn1(net.conv1(x))), (1, 0, 0, 0)),
    "torch.relu_": (lambda net, x: torch.relu_(net.bn1(net.conv1(x))), (1, 0, 0, 0)),
    "F.relu": (lambda net, x: F.relu(net.bn1(net.conv1(x))), (1, 0, 0, 0)),
    "F.relu in place": (lambda net, x: F.relu(net.bn1(net.conv1(x)), inplace=True), (1, 0, 0, 0)),
    "F.relu in place too": (lambda net, x: F.relu(net.bn1(net.conv1(x)), True), (1, 0, 0, 0)),
    "F.relu6": (lambda net, x: F.relu6(net.bn1(net.conv1(x))), (1, 0, 0, 0)),
    "x.relu": (lambda net, x: net.bn1(net.conv1(x)).relu(), (1, 0, 0, 0)),
    "x.relu_": (lambda net, x: net.bn1(net.conv1(x)).relu_(), (1, 0, 0, 0)),
    "residual": (residual(operator.add, lambda net, y: net.relu(y)), (2, 0, 0, 0)),
    "residual in place": (residual(operator.iadd, lambda net, y: net.relu_(y)), (2, 0, 0, 0)),
    "residual torch.add": (residual(torch.add, lambda net, y: F.relu6(y)), (2, 0, 0, 0)),
    "residual method": (residual(lambda y, x: y.add(x), lambda net, y: y.relu()), (2, 0, 0, 0)),
    "residual method in place": (residual(lambda y, x: y.add_(x), lambda net, y: y.relu_()), (2, 0, 0, 0)),
    "residual first": (residual(lambda y, x: x + y, lambda net, y: net.relu(y)), (2, 0, 0, 0)),
    "residual, no relu": (residual(operator.add, lambda net, y: y), (2, 0, 0, 0)),
    "residual scaled": (residual(lambda y, x: torch.add(y, x, alpha=2), lambda net, y: F.relu(y)), (2, 0, 0, 1)),
    "number added": (residual(lambda y, x: y + 1, lambda net, y: net.relu(y)), (2, 0, 0, 1)),
    "broadcast": (residual(lambda y, x: y + x.mean((2, 3), keepdim=True), lambda net, y: F.relu(y)), (2, 0, 0, 0)),
    "two branches": (lambda net, x: F.relu(net.bn1(net.conv1(x)) + net.bn2(net.conv2(x))), (2, 0, 0, 0)),
    "twice itself": (lambda net, x: F.relu((y := net.bn1(net.conv1(x))) + y), (1, 0, 0, 1)),
    "three terms": (lambda net, x: F.relu(net.bn1(net.conv1(x)) + x + net.bn2(net.conv2(x))), (2, 0, 0, 0)),
    "used later": (also_adds_later, (2, 0, 0, 0)),
    "pre-activation": (lambda net, x: net.conv2(net.relu(net.bn1(x))) + x, (0, 1, 1, 0)),
    "conv used twice": (lambda net, x: net.bn1(y := net.conv1(x)) + y, (0, 1, 1, 0)),
    "conv shared": (shared, (0, 2, 2, 0)),
    "norm shared": (shared_norm, (0, 2, 2, 0)),
    "changed in place": (changed_in_place, (1, 0, 0, 0)),
    "view in place": (view_changed_in_place, (1, 0, 0, 0)),
    "added in place": (added_in_place_and_used, (2, 0, 0, 1)),
    "input changed": (input_changed_between, (1, 0, 0, 1)),
    "relu alone": (lambda net, x: net.relu(x), (0, 0, 0, 1)),
    "relu of few dimensions": (lambda net, x: F.relu(net.conv1(x).sum()), (0, 1, 0, 1)),
}


def calls(fused: FusedModel, x: Tensor) -> tuple[int, int, int, int]:
    kinds = (FoldedConv2d, Conv2d, BatchNorm2d, AddReLU)
    seen: list[type] = []
    hooks = [m.register_forward_hook(lambda m, *_: seen.append(type(m))) for m in fused.modules()]
    fused(x)
    for hook in hooks:
        hook.remove()
    return tuple(seen.count(kind) for kind in kinds)  # type: ignore[return-value]


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name: str) -> None:
    forward, expected_calls = PATTERNS[name]
    model = Net(forward).eval()
    x = 3 * torch.randn(2, 4, 6, 5)
    with torch.no_grad():
        expected = model(x.clone())
        folded = fuse(model, inference=True)
        torch.testing.assert_close(folded(x.clone()), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fuse(model, inference=False)(x.clone()), expected, rtol=1e-4, atol=1e-4)
        assert calls(folded, x) == expected_calls, folded.code


@pytest.mark.parametrize("name", [n for n in PATTERNS if "place" not in n and n != "input changed"])
def test_patterns_train(name: str) -> None:
    """Same outputs, gradients and statistics in training mode (in-place ones: PyTorch refuses some of them)."""
    model = Net(PATTERNS[name][0]).double()
    fused = fuse(copy.deepcopy(model), inference=False)
    x = 3 * torch.randn(2, 4, 6, 5, dtype=torch.float64)
    for network in (model, fused):
        network(x.clone().requires_grad_()).square().sum().backward()
    torch.testing.assert_close(fused(x), model(x))
    ours, theirs = dict(fused.named_parameters()), dict(model.named_parameters())
    for key, parameter in theirs.items():
        torch.testing.assert_close(ours[key].grad, parameter.grad, msg=key)
    assert list(fused.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(dict(fused.state_dict()), dict(model.state_dict()))


def resnet() -> nn.Module:
    return Net(residual(operator.add, relu_of))


def relu_of(net: Net, y: Tensor) -> Tensor:
    return net.relu(y)


class Block(nn.Module):
    """What pickles, unlike a Net."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = conv(), norm(), conv(bias=False), norm()
        self.drop = nn.Dropout(0.5)
        self.note = "kept"

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn1(self.conv1(x)))
        return torch.flatten(self.drop(F.relu(self.bn2(self.conv2(y)) + x)), 1)


X = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize("inference", [False, True])
def test_copies_pickles_and_compiles(inference: bool) -> None:
    fused = fuse(Block().eval(), inference=inference)
    expected = fused(X)
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):  # noqa: S301  # our own bytes
        assert torch.equal(twin(X), expected)
        twin.load_state_dict(fuse(Block(), inference=True).state_dict())
        assert not torch.equal(twin(X), expected)
        assert torch.equal(fused(X), expected)
        assert twin.note == "kept"
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), expected)


def test_the_training_form_compiles_with_gradients() -> None:
    model = Block()
    model.drop.p = 0.0
    fused, twin = fuse(model, inference=False), fuse(copy.deepcopy(model), inference=False)
    torch.compile(fused, fullgraph=True, backend="aot_eager")(X).square().sum().backward()
    twin(X).square().sum().backward()
    for ours, theirs in zip(fused.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("inference", [False, True])
def test_state_dicts_are_those_of_the_plain_model(inference: bool) -> None:
    model, other = Block().eval(), Block().eval()
    fused = fuse(copy.deepcopy(other), inference=inference)
    assert list(fused.state_dict()) == list(model.state_dict())
    assert fused.load_state_dict(model.state_dict()) == ([], [])
    torch.testing.assert_close(fused(X), model(X))
    fused.load_state_dict(other.state_dict(), assign=True)
    torch.testing.assert_close(fused(X), other(X))
    model.load_state_dict(fused.state_dict())
    assert torch.equal(model(X), other(X))
    with pytest.raises(RuntimeError, match="Missing key"):
        fused.load_state_dict({})


def test_a_fused_part_of_a_model_folds_again_with_the_whole() -> None:
    whole, plain = nn.Sequential(fuse(Block(), inference=True)), nn.Sequential(Block().eval())
    whole.load_state_dict(plain.state_dict())
    torch.testing.assert_close(whole(X), plain(X))


def test_folding_again_by_hand() -> None:
    model = Block().eval()
    fused = fuse(model, inference=True)
    with torch.no_grad():
        for network in (fused, model):
            network.bn1.weight.mul_(2)
    fused.fold_again()
    torch.testing.assert_close(fused(X), model(X))


def test_the_inference_form_is_a_copy_in_eval_mode_for_good() -> None:
    model = Block()
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model, inference=True)
    assert model.training
    assert type(model.conv1) is nn.Conv2d
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in fused.parameters()}
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in fused.parameters())
    assert not fused.train().training
    assert torch.equal(fused(X), fused(X))
    x = X.clone().requires_grad_()
    fused(x).sum().backward()  # gradients of the picture remain, for those who ask what the network sees
    assert x.grad is not None


def test_the_training_form_shares_parameters_but_not_modes() -> None:
    model = Block()
    model.bn1.eval()
    fused = fuse(model, inference=False)
    assert type(model.conv1) is nn.Conv2d
    assert [m.training for m in fused.modules()] == [m.training for m in model.modules()]
    assert all(a is b for a, b in zip(model.parameters(), fused.parameters(), strict=True))
    assert all(a is b for a, b in zip(model.buffers(), fused.buffers(), strict=True))
    fused.eval()
    assert model.training
    assert model.bn2.training


def test_a_trained_fused_model_gives_its_weights_to_the_plain_one() -> None:
    model, plain = Block(), Block().eval()
    fused = fuse(model, inference=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)  # the model's own: they are the same parameters
    losses = []
    for _ in range(5):
        loss = (fused(X) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert int(fused.bn1.num_batches_tracked) == 5
    plain.load_state_dict(fused.state_dict())
    torch.testing.assert_close(plain(X), fused.eval()(X))
    torch.testing.assert_close(fuse(plain, inference=True)(X), plain(X), rtol=1e-4, atol=1e-5)


def test_fused_models_can_be_fused() -> None:
    model = Block().eval()
    trained = fuse(model, inference=False)
    for fused in (fuse(trained, inference=False), fuse(trained, inference=True)):
        torch.testing.assert_close(fused(X), model(X))
        assert list(fused.state_dict()) == list(model.state_dict())
    assert calls(fused, X) == (2, 0, 0, 0)
    again = fuse(fused, inference=True)
    assert again is not fused
    assert torch.equal(again(X), fused(X))
    with pytest.raises(InvalidArgumentError, match="the inference form cannot be trained"):
        fuse(fused, inference=False)


def test_channels_last_inside() -> None:
    fused = fuse(nn.Sequential(conv(), norm(), nn.ReLU()), inference=True)
    assert fused(X).is_contiguous(memory_format=torch.channels_last)
    assert fused.get_submodule("0").folded_weight.is_contiguous(memory_format=torch.channels_last)
    assert fused(X[0]).dim() == 3


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) if x.sum() > 0 else x


class WithUntraceable(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean() > 0 else x


def test_what_cannot_be_traced_is_told() -> None:
    with pytest.raises(InvalidArgumentError, match=r"torch\.fx cannot trace WithUntraceable: .*control flow"):
        fuse(WithUntraceable(conv()), inference=True)


def test_modules_that_it_does_not_know_stay() -> None:
    hooked, own = conv(), conv()
    hooked.register_forward_hook(lambda module, args, y: y + 1)

    class OwnConv(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    own.__class__ = OwnConv
    scaled = nn.utils.parametrizations.weight_norm(conv())
    parts = [
        hooked,
        nn.ReLU(),
        own,
        norm(),
        nn.GELU(),
        Untraceable(),
        nn.GroupNorm(2, 4),
        scaled,
        nn.ReLU(),
        conv(),
    ]
    model = nn.Sequential(*parts).eval()
    for inference in (False, True):
        fused = fuse(model, inference=inference)
        torch.testing.assert_close(fused(X), model(X), rtol=1e-4, atol=1e-5)
        assert [type(m) is Conv2d for m in fused.children() if isinstance(m, nn.Conv2d)] == [
            False,
            False,
            False,
            True,
        ]


class Modes(nn.Module):
    """Does something else in training, like networks with auxiliary heads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(), conv()
        self.unused = conv()

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.conv1(x))
        return (
            (self.conv2(y), F.dropout(y, 0.5, self.training))
            if self.training
            else F.dropout(y, 0.5, self.training)
        )


def test_each_mode_has_its_forward() -> None:
    model = Modes()
    fused = fuse(model, inference=False)
    assert len(fused(X)) == 2
    twin = pickle.loads(pickle.dumps(fused))  # noqa: S301  # our own bytes
    torch.testing.assert_close(twin(X)[0], model(X)[0])
    assert "conv2" in fused.code
    torch.testing.assert_close(fused.eval()(X), model.eval()(X))
    assert "conv2" not in fused.code
    assert "unused.weight" in fused.state_dict()
    assert torch.equal(fuse(model, inference=True)(X), fused(X))


class WithConstant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        return {"y": F.relu(self.conv(x)) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]) * scale}


def test_constants_and_keywords() -> None:
    model = WithConstant().eval()
    for inference in (False, True):
        fused = fuse(model, inference=inference)
        torch.testing.assert_close(fused(X, scale=2.0)["y"], model(X, 2.0)["y"])
        assert list(fused.state_dict()) == list(model.state_dict())
        assert fused.double()(X.double())["y"].dtype == torch.float64
        model = model.float()


def test_names_already_taken() -> None:
    model = nn.Sequential()
    model.add_module("fused_relu", conv())
    model.add_module("pool", nn.MaxPool2d(2))
    model.add_module("relu", nn.ReLU())
    torch.testing.assert_close(fuse(model, inference=True)(X), model(X))


def test_parts_that_occur_twice_are_replaced_twice() -> None:
    part = nn.Sequential(conv(), nn.ReLU())
    model = nn.Sequential(part, part)
    for inference in (False, True):
        fused = fuse(model, inference=inference)
        assert fused.get_submodule("0") is fused.get_submodule("1")
        assert type(fused.get_submodule("1.0")) is Conv2d
        torch.testing.assert_close(fused(X), model(X))


@pytest.mark.parametrize("inference", [False, True])
def test_autocast(inference: bool) -> None:
    model = Block().eval()
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = fuse(model, inference=inference)(X), model(X)
    torch.testing.assert_close(got.float(), expected.float(), rtol=0.1, atol=0.1)
    torch.testing.assert_close(fuse(model, inference=inference)(X), model(X))


@torch.no_grad()
def test_moving_the_inference_form_moves_the_folded_weights() -> None:
    model = Block().eval()
    fused = fuse(model, inference=True).double()
    torch.testing.assert_close(fused(X.double()), model(X).double(), rtol=1e-4, atol=1e-5)
    half = fuse(model, inference=True).bfloat16()
    assert half(X.bfloat16()).dtype == torch.bfloat16
