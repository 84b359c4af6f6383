from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyserve.errors import InvalidArgumentError
from pyserve.kernels import AddReLU, Conv2d, ConvBNReLU, conv2d, fuse, info, layers
from pyserve.kernels.layers import FoldedConv2d

CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
    {"kernel_size": (3, 1), "padding": (0, 2), "stride": (1, 3), "dilation": (2, 1)},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": (2, 4), "padding": "same"},
    {"kernel_size": 3, "padding": "valid", "groups": 4},
    {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
    {"kernel_size": 1, "padding": 1, "padding_mode": "replicate", "stride": 2},
]
each_convolution = pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)

# PyTorch's remark on its own layer, to which ours is compared
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")


def pair(options: dict[str, Any]) -> tuple[nn.Conv2d, Conv2d]:
    """PyTorch's layer and ours with the same parameters."""
    plain, ours = nn.Conv2d(4, 8, **options).double(), Conv2d(4, 8, **options).double()
    ours.load_state_dict(plain.state_dict())
    return plain, ours


def picture(*sizes: int) -> Tensor:
    return torch.randn(sizes or (2, 4, 9, 8), dtype=torch.float64, requires_grad=True)


def same_gradients(got: Tensor, expected: Tensor, tensors: list[Tensor], theirs: list[Tensor]) -> None:
    seed = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(got, tensors, seed), torch.autograd.grad(expected, theirs, seed), strict=True
    ):
        torch.testing.assert_close(a, b)


@each_convolution
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_conv2d_is_the_plain_layer_with_an_epilogue(options: dict[str, Any], activation: Any) -> None:
    plain, ours = pair(options)
    x = picture()
    with torch.no_grad():
        for module in (plain, ours):  # large enough that ReLU6's upper bound matters
            module.weight *= 4
            if module.bias is not None:
                module.bias *= 4
    residual = torch.randn_like(plain(x), requires_grad=True)
    bare = {"none": lambda v: v, "relu": F.relu, "relu6": F.relu6}[activation]
    for added in (None, residual):
        got = ours(x, added, activation)
        wanted = bare(plain(x) if added is None else plain(x) + added)
        torch.testing.assert_close(got, wanted)
        more = [] if added is None else [added]
        same_gradients(got, wanted, [x, *ours.parameters(), *more], [x, *plain.parameters(), *more])


@each_convolution
def test_conv2d_without_a_batch(options: dict[str, Any]) -> None:
    plain, ours = pair(options)
    x = picture(4, 9, 8)
    residual = torch.randn_like(plain(x))
    torch.testing.assert_close(ours(x, residual, "relu"), F.relu(plain(x) + residual))


@each_convolution
def test_a_residual_of_the_output_s_sizes_goes_into_the_kernel(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ours = pair(options)
    seen: list[bool] = []

    def watched(*args: Any, residual: Tensor | None = None, **others: Any) -> Tensor:
        seen.append(residual is not None)
        return conv2d(*args, residual=residual, **others)

    x = picture()
    y = ours(x)
    monkeypatch.setattr(layers, "conv2d", watched)
    ours(x, torch.randn_like(y))
    ours(x, torch.randn_like(y)[:1])
    assert seen == [True, False]


@pytest.mark.parametrize("sizes", [(1, 8, 7, 6), (8, 1, 1), (1,), (2, 1, 7, 1)])
def test_a_residual_that_broadcasts(sizes: tuple[int, ...]) -> None:
    plain, ours = pair({"kernel_size": 3})
    x, residual = picture(), picture(*sizes)
    got, expected = ours(x, residual, "relu"), F.relu(plain(x) + residual)
    torch.testing.assert_close(got, expected)
    same_gradients(got, expected, [x, residual], [x, residual])


def test_a_larger_residual_broadcasts_the_output() -> None:
    plain, ours = pair({"kernel_size": 3})
    x, residual = picture(1, 4, 9, 8), picture(3, 8, 7, 6)
    torch.testing.assert_close(ours(x, residual, "relu6"), F.relu6(plain(x) + residual))


def test_a_residual_of_another_type_is_promoted() -> None:
    plain, ours = pair({"kernel_size": 3})
    x, residual = picture(), picture(2, 8, 7, 6).float()
    torch.testing.assert_close(ours(x, residual), plain(x) + residual)


def test_adopting_keeps_the_parameters() -> None:
    plain = nn.Conv2d(3, 4, 3)
    weight = plain.weight
    Conv2d.adopt(plain)
    assert type(plain) is Conv2d
    assert plain.weight is weight
    torch.testing.assert_close(plain(torch.ones(1, 3, 5, 5)), F.conv2d(torch.ones(1, 3, 5, 5), weight, plain.bias))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_folding(bias: bool, affine: bool) -> None:
    conv, norm = nn.Conv2d(4, 8, 3, bias=bias), nn.BatchNorm2d(8, affine=affine).eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.01, 3)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 4, 9, 8)
    expected = norm(conv(x))
    keys = list(conv.state_dict())
    FoldedConv2d.adopt_with(conv, norm)
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-5)
    assert list(conv.state_dict()) == keys


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_add_relu_takes_what_relu_takes(activation: Any) -> None:
    layer = AddReLU(activation)
    bare = {"none": lambda v: v, "relu": F.relu, "relu6": F.relu6}[activation]
    for x in (torch.randn(()), torch.randn(5), torch.randn(3, 4), torch.randn(2, 3, 4), torch.randn(2, 3, 4, 5)):
        torch.testing.assert_close(layer(5 * x), bare(5 * x))
        torch.testing.assert_close(layer(5 * x, x), bare(5 * x + x))
    numbers = torch.arange(-9, 9)
    torch.testing.assert_close(layer(numbers), bare(numbers))
    x, y = torch.randn(2, 3, 4, 5), torch.randn(3, 1, 1)
    torch.testing.assert_close(layer(x, y), bare(x + y))
    torch.testing.assert_close(layer(y, x), bare(x + y))
    torch.testing.assert_close(layer(x, x.bfloat16()), bare(x + x.bfloat16()))


def test_add_relu_runs_our_operator() -> None:
    before = sum(info().calls.values())
    AddReLU()(torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5))
    assert sum(info().calls.values()) == before + 1


def test_an_unknown_activation_is_told() -> None:
    with pytest.raises(InvalidArgumentError, match="activation: got 'gelu', expected one of none, relu, relu6"):
        AddReLU("gelu")  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_conv_bn_relu_and_its_folded_form(activation: Any) -> None:
    block = ConvBNReLU(4, 8, 3, stride=2, groups=2, activation=activation)
    bare = {"none": lambda v: v, "relu": F.relu, "relu6": F.relu6}[activation]
    x, residual = torch.randn(2, 4, 9, 9), torch.randn(2, 8, 5, 5)
    expected = F.conv2d(x, block.conv.weight, stride=2, padding=1, groups=2)
    scaled = F.batch_norm(expected, None, None, training=True)
    torch.testing.assert_close(block(x, residual), bare(scaled + residual), rtol=1e-4, atol=1e-5)
    block.eval()
    folded = fuse(block, inference=True)
    assert [type(m) for m in folded.modules() if isinstance(m, Conv2d)] == [FoldedConv2d]
    torch.testing.assert_close(folded(x, residual), block(x, residual), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer", [Conv2d(4, 8, 3), AddReLU("relu6"), ConvBNReLU(4, 8)], ids=lambda v: type(v).__name__
)
def test_layers_copy_and_pickle(layer: nn.Module) -> None:
    x = torch.randn(2, 4, 6, 6)
    expected = layer.eval()(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)  # noqa: S301  # our own bytes
