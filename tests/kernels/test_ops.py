"""conv2d and bias_relu as PyTorch operators: arguments, layouts, gradients, compile, autocast, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyserve.errors import InvalidArgumentError
from pyserve.kernels import bias_relu, conv2d, info
from pyserve.kernels.ops import output_format
from tests.kernels.support import NO_ACTIVATION

RELU = (0.0, math.inf)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ------------------------------------------------------------ arguments


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # PyTorch's copy, not ours
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"stride": (2, 1)},
        {"stride": [2]},
        {"padding": "same"},
        {"padding": "same", "dilation": 2},
        {"padding": "valid"},
        {"padding": (1, 0), "dilation": (1, 2)},
    ],
    ids=str,
)
def test_conv2d_takes_what_torch_takes(device: str, arguments: dict[str, Any]) -> None:
    weight, bias = torch.randn(6, 4, 3, 2, device=device), torch.randn(6, device=device)
    for x in (torch.randn(2, 8, 9, 7, device=device), torch.randn(8, 9, 7, device=device)):
        ours = conv2d(x, weight, bias, groups=2, **arguments)
        torch.testing.assert_close(ours, F.conv2d(x, weight, bias, groups=2, **arguments), atol=1e-5, rtol=1e-5)


def test_unbatched_residual() -> None:
    x, weight, residual = torch.randn(3, 5, 5), torch.randn(4, 3, 3, 3), torch.randn(4, 3, 3)
    expected = F.relu(F.conv2d(x, weight) + residual)
    torch.testing.assert_close(conv2d(x, weight, residual=residual, activation="relu"), expected)


# ------------------------------------------------------------ layouts


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The values of x, laid out in many ways."""
    wide = torch.zeros(*x.shape[:3], 2 * x.shape[3], dtype=x.dtype, device=x.device)
    wide[..., ::2] = x
    frame = F.pad(x, [1, 2, 3, 1]).contiguous(memory_format=torch.channels_last)
    more_channels = torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)
    return {
        "contiguous": x.contiguous(),
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "sliced": wide[..., ::2],
        "cropped": frame[:, :, 3:-1, 1:-2],
        "some channels": more_channels[:, : x.shape[1]],
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "batch last": x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    }


@pytest.mark.parametrize("name", layouts(torch.zeros(1, 1, 1, 1)))
def test_any_layout(device: str, name: str) -> None:
    x, weight, residual = torch.randn(2, 8, 7, 9), torch.randn(8, 8, 3, 3), torch.randn(2, 8, 7, 9)
    expected = F.relu(F.conv2d(x, weight, padding=1) + residual)
    x_as, weight_as, residual_as = (layouts(t.to(device))[name] for t in (x, weight, residual))
    leaves = [x_as.detach().requires_grad_(), weight_as.detach().requires_grad_()]
    y = conv2d(*leaves, padding=1, residual=residual_as, activation="relu")
    torch.testing.assert_close(y.cpu(), expected, atol=1e-4, rtol=1e-4)
    assert y.is_contiguous(memory_format=output_format(x_as))
    grad = layouts(torch.randn(2, 8, 7, 9).to(device))[name]
    ours = torch.autograd.grad(y, leaves, grad)
    again = [leaf.detach().cpu().contiguous().requires_grad_() for leaf in leaves]
    torchs = torch.autograd.grad(F.relu(F.conv2d(*again, padding=1) + residual), again, grad.cpu())
    for our, torch_s in zip(ours, torchs, strict=True):
        torch.testing.assert_close(our.cpu(), torch_s, atol=1e-4, rtol=1e-4)


def test_expanded_inputs(device: str) -> None:
    x = torch.randn(1, 1, 6, 6, device=device).expand(3, 4, 6, 6)
    weight = torch.randn(1, 1, 3, 3, device=device).expand(5, 4, 3, 3)
    residual = torch.randn(1, 5, 1, 1, device=device).expand(3, 5, 4, 4)
    bias = torch.randn(1, device=device).expand(5)
    expected = F.conv2d(x.contiguous(), weight.contiguous(), bias.contiguous()) + residual
    torch.testing.assert_close(conv2d(x, weight, bias, residual=residual), expected, atol=1e-5, rtol=1e-5)


def test_expanded_gradient(device: str) -> None:
    x, weight = torch.randn(2, 3, 6, 6, device=device), torch.randn(5, 3, 3, 3, device=device, requires_grad=True)
    (ours,) = torch.autograd.grad(conv2d(x, weight, activation="relu").sum(), weight)
    (torchs,) = torch.autograd.grad(F.conv2d(x, weight).relu().sum(), weight)
    torch.testing.assert_close(ours, torchs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "sizes", [(2, 3, 4, 5), (1, 1, 1, 1), (2, 1, 4, 4), (2, 3, 1, 1), (1, 3, 4, 4), (0, 3, 4, 4)], ids=str
)
def test_the_memory_format_is_the_fakes_too(sizes: tuple[int, ...]) -> None:
    """The rule is written in C++ and in Python: they agree, and where the layout is plain it is kept."""
    for name, x in layouts(torch.randn(sizes)).items():
        y = bias_relu(x)
        fake = torch.ops.pyserve.bias_relu(x.to("meta"), None, None, *RELU)
        assert y.stride() == fake.stride(), name
        if min(sizes) > 1 and name in ("contiguous", "channels_last"):
            assert y.stride() == x.stride(), name


# ------------------------------------------------------------ gradients


def test_gradcheck(device: str) -> None:
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64, device=device, requires_grad=True)
    weight = torch.randn(6, 2, 3, 2, dtype=torch.float64, device=device, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, device=device, requires_grad=True)
    residual = torch.randn(2, 6, 3, 4, dtype=torch.float64, device=device, requires_grad=True)

    def function(*tensors: Tensor) -> Tensor:
        return conv2d(*tensors[:3], (2, 1), (1, 1), (1, 2), 2, residual=tensors[3], activation="relu")

    assert torch.autograd.gradcheck(function, (x, weight, bias, residual))
    assert torch.autograd.gradgradcheck(function, (x, weight, bias, residual))


def test_gradcheck_without_activation() -> None:
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv2d, (x, weight))
    assert torch.autograd.gradgradcheck(conv2d, (x, weight))


def test_gradcheck_of_bias_relu(device: str) -> None:
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, device=device, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, device=device, requires_grad=True)
    residual = torch.randn(2, 3, 2, 2, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(bias_relu, (x, bias, residual))
    assert torch.autograd.gradgradcheck(bias_relu, (x, bias, residual))


# ------------------------------------------------------------ opcheck, compile, autocast


def conv2d_samples(device: str) -> list[tuple[Any, ...]]:
    x, weight = torch.randn(2, 4, 6, 5, device=device), torch.randn(6, 2, 3, 3, device=device)
    bias, residual = torch.randn(6, device=device), torch.randn(2, 6, 3, 3, device=device)
    last = x.contiguous(memory_format=torch.channels_last)
    return [
        (x, weight, bias, residual, [2, 2], [1, 1], [1, 1], 2, *RELU),
        (
            last.requires_grad_(),
            weight.clone().requires_grad_(),
            None,
            None,
            [1, 1],
            [0, 0],
            [1, 1],
            2,
            *NO_ACTIVATION,
        ),
        (x[:0], weight, bias, None, [2, 2], [1, 1], [1, 1], 2, *RELU),
    ]


def test_opcheck_conv2d(device: str) -> None:
    for sample in conv2d_samples(device):
        torch.library.opcheck(torch.ops.pyserve.conv2d.default, sample)


def test_opcheck_conv2d_backward(device: str) -> None:
    for x, weight, _, _, *rest in conv2d_samples(device):
        y = torch.ops.pyserve.conv2d(x, weight, None, None, *rest).detach()
        for wanted in ([True, True, True, True], [False, True, False, False]):
            arguments = (torch.randn_like(y), y, x.detach(), weight.detach(), *rest, wanted)
            torch.library.opcheck(torch.ops.pyserve.conv2d_backward.default, arguments)


def test_opcheck_bias_relu(device: str) -> None:
    x, bias = torch.randn(2, 3, 4, 4, device=device, requires_grad=True), torch.randn(3, device=device)
    torch.library.opcheck(torch.ops.pyserve.bias_relu.default, (x, bias, torch.randn_like(x), *RELU))
    y = torch.ops.pyserve.bias_relu(x, bias, None, *RELU).detach()
    for bias_wanted in (True, False):
        arguments = (torch.randn_like(y), y, *RELU, bias_wanted)
        torch.library.opcheck(torch.ops.pyserve.bias_relu_backward.default, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(device: str, dynamic: bool) -> None:
    def network(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = conv2d(x, weight, bias, padding="same", activation="relu")
        return bias_relu(conv2d(y, weight, padding=1), bias, residual=y)

    tensors = [torch.randn(2, 6, 5, 5), torch.randn(6, 6, 3, 3), torch.randn(6)]
    plain = [t.to(device).requires_grad_() for t in tensors]
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (2, 3):
        inputs = [torch.randn(batch, 6, 5, 5, device=device, requires_grad=True), *plain[1:]]
        eager, ours = network(*inputs), compiled(*inputs)
        torch.testing.assert_close(ours, eager)
        for a, b in zip(
            torch.autograd.grad(ours.sum(), inputs), torch.autograd.grad(eager.sum(), inputs), strict=True
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(device: str, dtype: torch.dtype) -> None:
    x, weight = torch.randn(2, 8, 6, 6, device=device), torch.randn(4, 8, 3, 3, device=device, requires_grad=True)
    bias = torch.randn(4, device=device, requires_grad=True)
    with torch.autocast(device, dtype):
        y = conv2d(x, weight, bias, activation="relu")
        assert y.dtype is dtype
        assert bias_relu(y).dtype is dtype
        expected = F.conv2d(x, weight, bias).relu()
    torch.testing.assert_close(y, expected, atol=0.1, rtol=0.02)
    gradients = torch.autograd.grad(y.float().square().mean(), [weight, bias])
    assert all(gradient.dtype is torch.float32 for gradient in gradients)


# ------------------------------------------------------------ ATen where we are not


@pytest.mark.parametrize("dtype", [torch.float16, torch.complex64], ids=str)
def test_other_dtypes_go_to_aten_and_are_counted(dtype: torch.dtype) -> None:
    name = f"conv2d: {str(dtype).removeprefix('torch.')} on cpu"
    before = info().fallbacks.get(name, 0)
    x, weight = torch.randn(2, 4, 5, 5, dtype=dtype), torch.randn(3, 4, 3, 3, dtype=dtype)
    assert torch.equal(conv2d(x, weight, padding=1), F.conv2d(x, weight, padding=1))
    assert info().fallbacks[name] == before + 1


def test_float16_gradients_by_aten() -> None:
    leaves = [
        torch.randn(sizes).half().requires_grad_() for sizes in ([2, 4, 5, 5], [3, 4, 3, 3], [3], [2, 3, 3, 3])
    ]
    x, weight, bias, residual = leaves
    ours = torch.autograd.grad(conv2d(x, weight, bias, residual=residual, activation="relu6").sum(), leaves)
    plain = F.relu6(F.conv2d(x, weight, bias) + residual)
    for our, torchs in zip(ours, torch.autograd.grad(plain.sum(), leaves), strict=True):
        torch.testing.assert_close(our, torchs, atol=2e-2, rtol=2e-2)
    y = bias_relu(x, activation="relu6")
    assert torch.equal(y, F.relu6(x))
    (ours_x,) = torch.autograd.grad(y.sum(), x)
    (torchs_x,) = torch.autograd.grad(F.relu6(x).sum(), x)
    assert torch.equal(ours_x, torchs_x)


# ------------------------------------------------------------ errors

X, WEIGHT = (8, 64, 56, 56), (32, 32, 3, 3)
WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"weight": (64, 3, 3, 3)},
        "weight has 3 input channels, expected C/groups = 64/2 = 32 (x is [8, 64, 56, 56])",
    ),
    ({"x": (8, 64)}, "x has 2 dimensions, expected 4: [N, C, H, W] (x is [8, 64])"),
    ({"weight": (3, 3)}, "weight has 2 dimensions, expected 4: [K, C/groups, R, S] (weight is [3, 3])"),
    ({"stride": (0, 1)}, "stride is [0, 1], expected each >= 1"),
    ({"stride": (1, 1, 1)}, "stride has 3 numbers, expected 2 (height, width)"),
    ({"padding": -1}, "padding is [-1, -1], expected each >= 0"),
    ({"dilation": 0}, "dilation is [0, 0], expected each >= 1"),
    ({"groups": 0}, "groups is 0, expected >= 1"),
    ({"groups": 3}, "groups is 3, expected a divisor of C = 64 (x is [8, 64, 56, 56])"),
    ({"groups": 64, "weight": (32, 1, 3, 3)}, "groups is 64, expected a divisor of the number of filters K = 32"),
    ({"bias": (31,)}, "bias is [31], expected [32]: one value per filter"),
    ({"residual": (8, 32, 56, 56)}, "residual is [8, 32, 56, 56], expected [8, 32, 54, 54]: the output's sizes"),
    ({"x": (8, 64, 0, 56)}, "x is [8, 64, 0, 56], expected C, H, W >= 1 (only N may be 0)"),
    (
        {"x": (1, 64, 4, 9), "dilation": 2},
        "the kernel spans 5 along H (size 3, dilation 2), expected at most H + 2·padding = 4 + 2·0 = 4",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), WRONG, ids=[sentence[:40] for _, sentence in WRONG])
@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_wrong_arguments_get_a_sentence_with_the_values(place: str, change: dict[str, Any], sentence: str) -> None:
    arguments: dict[str, Any] = {"x": X, "weight": WEIGHT, "groups": 2} | change
    for name in ("x", "weight", "bias", "residual"):
        if name in arguments:
            arguments[name] = torch.zeros(arguments[name], device=place)
    with pytest.raises(InvalidArgumentError) as caught:
        conv2d(**arguments)
    assert caught.value.message.startswith(f"conv2d: {sentence}")


def test_wrong_dtypes_and_devices() -> None:
    x, weight = torch.zeros(1, 2, 4, 4), torch.zeros(3, 2, 3, 3)
    with pytest.raises(InvalidArgumentError, match="conv2d: weight is float64, expected float32 like x"):
        conv2d(x, weight.double())
    with pytest.raises(InvalidArgumentError, match="conv2d: bias is bfloat16, expected float32 like x"):
        conv2d(x, weight, torch.zeros(3).bfloat16())
    if torch.cuda.is_available():
        with pytest.raises(InvalidArgumentError, match="conv2d: weight is on cpu, expected cuda:0 like x"):
            conv2d(x.cuda(), weight)


def test_wrong_names() -> None:
    x, weight = torch.zeros(1, 2, 4, 4), torch.zeros(3, 2, 3, 3)
    with pytest.raises(InvalidArgumentError, match="activation: got 'gelu', expected one of none, relu, relu6"):
        conv2d(x, weight, activation="gelu")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="padding: got 'full', expected"):
        conv2d(x, weight, padding="full")
    with pytest.raises(InvalidArgumentError, match=r'stride: got \(2, 2\), expected 1 with padding "same"'):
        conv2d(x, weight, stride=2, padding="same")


def test_bias_relu_refuses() -> None:
    x = torch.zeros(2, 3, 4)
    with pytest.raises(
        InvalidArgumentError, match=r"bias_relu: bias is \[4\], expected \[3\]: one value per channel"
    ):
        bias_relu(x, torch.zeros(4))
    with pytest.raises(InvalidArgumentError, match=r"bias_relu: residual is \[3\], expected \[2, 3, 4\]"):
        bias_relu(x, residual=torch.zeros(3))
    with pytest.raises(InvalidArgumentError, match="bias_relu: x has 1 dimensions, expected at least 2"):
        bias_relu(torch.zeros(3))


def test_the_operators_refuse_too() -> None:
    """A call past the wrapper must not reach memory it does not own."""
    x, weight, grad = torch.zeros(1, 2, 4, 4), torch.zeros(3, 2, 3, 3), torch.zeros(1, 3, 2, 3)
    numbers = ([1, 1], [0, 0], [1, 1], 1)
    wanted = [True] * 4
    refused = (RuntimeError, ValueError)  # the latter from torch 2.14 on
    with pytest.raises(refused, match=r"conv2d_backward: grad is \[1, 3, 2, 3\], expected \[1, 3, 2, 2\]"):
        torch.ops.pyserve.conv2d_backward(grad, None, x, weight, *numbers, *NO_ACTIVATION, wanted)
    with pytest.raises(refused, match="conv2d_backward: y is missing"):
        torch.ops.pyserve.conv2d_backward(grad[..., :2], None, x, weight, *numbers, *RELU, wanted)
    with pytest.raises(refused, match="conv2d: the activation's bounds are lo = 1, hi = 0"):
        torch.ops.pyserve.conv2d(x, weight, None, None, *numbers, 1.0, 0.0)
    with pytest.raises(refused, match="bias_relu_backward: y is missing"):
        torch.ops.pyserve.bias_relu_backward(grad, None, *RELU, False)
