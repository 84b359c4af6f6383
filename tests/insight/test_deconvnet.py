"""Projections against the paper's steps written out by hand, and where they may and may not reach."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyserve import kernels
from pyserve.errors import FailedPreconditionError, InvalidArgumentError
from pyserve.inference.probe import Probe
from pyserve.insight.deconvnet import RULES, project, strongest, usual_rule
from pyserve.insight.receptive_field import receptive_fields
from tests.insight.networks import UPRIGHT, batch, planted, preprocessing, registered, stripe
from tests.models.support import pictures


class Paper(nn.Module):
    """As in the paper: convolutions, ReLUs, max poolings; the second convolution strides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(3, 5, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2, self.pool2 = nn.Conv2d(5, 6, 3, 2, padding=1), nn.ReLU6(), nn.MaxPool2d(2)
        self.fc = nn.Linear(6 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        y: Tensor = self.fc(x.flatten(1))
        return y


def by_hand(net: Paper, x: Tensor, seeds: Tensor, rule: str) -> Tensor:
    """Section 2.1 step by step, with PyTorch's unpooling and transposed convolution."""
    a1 = net.conv1(x)
    p1, switches1 = F.max_pool2d(a1.relu(), 2, return_indices=True)
    a2 = net.conv2(p1)
    _, switches2 = F.max_pool2d(a2.clamp(0, 6), 2, return_indices=True)
    down = F.max_unpool2d(seeds, switches2, 2, output_size=a2.shape[2:])
    down = down.relu() * (1 if rule == "deconvnet" else a2 > 0)
    down = F.conv_transpose2d(down, net.conv2.weight, None, 2, 1, output_padding=1)
    down = F.max_unpool2d(down, switches1, 2, output_size=a1.shape[2:])
    down = down.relu() * (1 if rule == "deconvnet" else a1 > 0)
    return F.conv_transpose2d(down, net.conv1.weight, None, 1, 2)


@pytest.mark.parametrize("rule", RULES)
def test_projection_is_what_the_paper_does(rule: str) -> None:
    x, seeds = pictures(2, 3, 16, 16), pictures(2, 6, 2, 2, seed=9).relu()
    net = Paper()
    with torch.no_grad():
        expected = by_hand(net, x, seeds, rule)
    got = project(Probe(Paper(), preprocessing()), x, "pool2", seeds, rule)
    assert expected.abs().max() > 0.01
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_rules_differ_and_both_differ_from_the_gradient() -> None:
    x, seeds = pictures(1, 3, 16, 16), pictures(1, 6, 2, 2, seed=9).relu()
    probe = Probe(Paper(), preprocessing())
    found = [project(probe, x, "pool2", seeds, rule) for rule in RULES]
    asked = x.clone().requires_grad_()
    outputs, _ = probe.run(asked, ["pool2"])
    found += torch.autograd.grad(outputs["pool2"], asked, seeds)
    for i in range(3):
        for j in range(i):
            assert (found[i] - found[j]).abs().max() > 1e-3


def test_residuals_batch_norm_and_average_pooling_by_their_transposes() -> None:
    """A block whose ReLUs all clamp nothing is linear, and a projection is its transposed matrix."""
    torch.manual_seed(3)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
            self.average = nn.AvgPool2d(2)
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.average(self.norm(self.conv(x)) + x)
            y: Tensor = self.fc(x.mean((2, 3)))
            return y

    net = Block()
    net.norm.running_mean, net.norm.running_var = torch.randn(3), torch.rand(3) + 0.5
    net.norm.weight.data, net.norm.bias.data = torch.rand(3) + 0.5, torch.randn(3)
    probe = Probe(net, preprocessing(8))
    probe.model.eval()
    x, seeds = pictures(1, 3, 8, 8), pictures(1, 3, 4, 4, seed=2)
    spread = F.interpolate(seeds, scale_factor=2) / 4
    scale = (net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()).reshape(1, 3, 1, 1)
    expected = spread + F.conv_transpose2d(spread * scale, net.conv.weight, None, 1, 1)
    got = project(probe, x, "average", seeds, "deconvnet")
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["smallnet", "resnet20", "resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("rule", RULES)
def test_a_projection_lies_within_the_receptive_field(name: str, rule: str) -> None:
    probe = registered(name, 96)
    fields = receptive_fields(probe)
    x = pictures(1, 3, 96, 96)
    for layer in [x for x in probe.layers if x.height >= 3][:: max(len(probe.layers) // 6, 1)]:
        row, column = layer.height // 2, layer.width // 3
        seeds = torch.zeros(1, layer.channels, layer.height, layer.width)
        seeds[0, :, row, column] = 1
        projection = project(probe, x, layer.name, seeds, rule)[0]
        box = fields[layer.name].box(row, column, 96)
        inside = projection[:, box.top : box.bottom, box.left : box.right]
        assert inside.abs().sum() > 0
        outside = projection.clone()
        outside[:, box.top : box.bottom, box.left : box.right] = 0
        assert outside.abs().max() <= 1e-5 * inside.abs().max()  # Winograd's transforms round there


@pytest.mark.parametrize("name", ["smallnet", "resnet20", "mobilenet_v2"])
def test_every_relu_of_the_networks_follows_the_rule(name: str) -> None:
    """With all weights negated from the top, plain backpropagation gives something and the rule gives nothing."""
    probe = registered(name, 32)
    layer = probe.last_layer
    seeds = -torch.ones(1, layer.channels, layer.height, layer.width)
    relus = [m for m in probe.model.modules() if isinstance(m, nn.ReLU | nn.ReLU6)]
    x = pictures(1, 3, 32, 32)
    if name == "mobilenet_v2":  # ends with a ReLU6, the others' blocks with a ReLU
        assert isinstance(relus[-1], nn.ReLU6)
    assert (project(probe, x, layer.name, seeds, "deconvnet") == 0).all()
    asked = x.clone().requires_grad_()
    outputs, _ = probe.run(asked, [layer.name])
    (gradient,) = torch.autograd.grad(outputs[layer.name], asked, seeds)
    assert gradient.abs().max() > 0


def test_a_planted_filter_comes_out_again() -> None:
    """The projection of a place of feature map 0 is that filter, at that place, times the activation."""
    probe = planted()
    x = probe.prepare(batch(stripe(column=5)))
    with torch.no_grad():
        output = probe.run(x, ["relu"])[0]["relu"][0]
    row, column = strongest(output, 0)
    assert column == 5
    seeds = torch.zeros(1, *output.shape)
    seeds[0, 0, row, column] = output[0, row, column]
    projection = project(probe, x, "relu", seeds)[0]
    top = max(row - 1, 0)
    expected = output[0, row, column] * UPRIGHT[max(1 - row, 0) :] / 3
    assert projection[0, top : row + 2, 4:7] == pytest.approx(expected.numpy(), abs=1e-6)


def test_the_transposed_convolution_is_our_kernel() -> None:
    def calls() -> int:
        return sum(n for name, n in kernels.info().calls.items() if name.startswith("conv2d_dgrad"))

    before = calls()
    project(Probe(Paper(), preprocessing()), pictures(1, 3, 16, 16), "conv2", torch.ones(1, 6, 4, 4))
    assert calls() == before + 2
    assert not [reason for reason in kernels.info().fallbacks if "conv2d_backward" in reason]


def test_the_usual_rule_depends_on_what_shrinks_the_network() -> None:
    assert usual_rule(registered("smallnet")) == "deconvnet"
    assert usual_rule(registered("vgg16_bn")) == "deconvnet"
    assert usual_rule(registered("resnet18")) == "guided"
    assert usual_rule(registered("mobilenet_v2")) == "guided"


class InPlace(Paper):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.relu_(self.conv1(x))[:, :3])


def test_bad_questions() -> None:
    probe = Probe(Paper(), preprocessing())
    x = pictures(1, 3, 16, 16)
    with pytest.raises(InvalidArgumentError, match="rule: got 'odd', expected one of deconvnet, guided"):
        project(probe, x, "pool2", torch.ones(1, 6, 2, 2), "odd")
    with pytest.raises(InvalidArgumentError, match="layer: got 'conv9', expected one of conv1, relu1"):
        project(probe, x, "conv9", torch.ones(1, 6, 2, 2))
    with pytest.raises(FailedPreconditionError, match="a ReLU that works in place"):
        project(Probe(InPlace(), preprocessing()), x, "pool2", torch.ones(1, 6, 2, 2))
