"""Receptive fields followed through graphs, against where gradients reach."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyserve.inference.probe import Probe
from pyserve.insight.receptive_field import Axis, Box, ReceptiveField, receptive_fields
from tests.insight.networks import planted, preprocessing, registered


@pytest.mark.parametrize("name", ["smallnet", "resnet20", "resnet18", "mobilenet_v2"])
def test_the_field_is_where_the_gradient_reaches(name: str) -> None:
    """Positive weights and no clamping, so that nothing cancels: every pixel that is seen has a gradient.

    In float64, which no Winograd transform computes: the others' gradient is exactly zero.
    """
    side = 96
    probe = registered(name, side)
    fields = receptive_fields(probe)
    for parameter in probe.model.parameters():
        parameter.data = torch.rand_like(parameter) * 0.1 + 0.01
    for module in probe.model.modules():
        if isinstance(module, nn.MaxPool2d):
            module.forward = nn.AvgPool2d(  # type: ignore[method-assign]
                module.kernel_size, module.stride, module.padding
            ).forward
    probe.model.double()
    spatial = [layer for layer in probe.layers if layer.height * layer.width > 1]
    for layer in spatial[:: max(len(spatial) // 7, 1)]:
        x = torch.rand(1, 3, side, side, dtype=torch.float64).requires_grad_()
        row, column = layer.height // 2, layer.width // 3
        outputs, _ = probe.run(x, [layer.name])
        (gradient,) = torch.autograd.grad(outputs[layer.name][0, :, row, column].sum(), x)
        seen = (gradient[0].abs().sum(0) > 0).nonzero()
        (top, left), (bottom, right) = seen.min(0).values.tolist(), seen.max(0).values.tolist()
        field = fields[layer.name]
        assert field.rows is not None
        assert field.columns is not None
        assert top == max(row * field.rows.stride + field.rows.first, 0)
        assert bottom == min(row * field.rows.stride + field.rows.last, side - 1)
        assert left == max(column * field.columns.stride + field.columns.first, 0)
        assert right == min(column * field.columns.stride + field.columns.last, side - 1)


def test_sizes_that_are_known() -> None:
    fields = receptive_fields(registered("resnet18", 224))
    assert fields["conv1"].size(224) == (7, 7)
    assert fields["maxpool"].size(224) == (11, 11)
    assert fields["layer1"].size(224) == (43, 43)
    assert fields["layer4"].rows == Axis(32, -217, 217)  # 435 pixels, more than there are
    assert fields["layer4"].size(224) == (224, 224)


def test_boxes_are_moved_into_the_picture() -> None:
    field = ReceptiveField(Axis(2, -3, 3), None)
    assert field.box(4, 0, 16) == Box(5, 0, 12, 16)
    assert field.box(0, 0, 16) == Box(0, 0, 7, 16)
    assert field.box(7, 0, 16) == Box(9, 0, 16, 16)


class Odd(nn.Module):
    """Windows that are not square, dilation, a slice, a concatenation, and something nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 4, (1, 5), stride=(1, 2), padding=(0, 2))
        self.dilated = nn.Conv2d(4, 4, 3, dilation=2)
        self.pool = nn.MaxPool2d((2, 3), stride=(2, 3))
        self.joined = nn.Conv2d(8, 4, 1)
        self.after = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.dilated(self.wide(x)))
        x = self.joined(torch.cat([x, x], 1))
        x = self.after(torch.flip(x, [2]))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


def test_odd_windows_and_what_is_not_known() -> None:
    fields = receptive_fields(Probe(Odd(), preprocessing(24)))
    assert fields["wide"] == ReceptiveField(Axis(1, 0, 0), Axis(2, -2, 2))
    assert fields["dilated"] == ReceptiveField(Axis(1, 0, 4), Axis(2, -2, 10))
    assert fields["pool"] == ReceptiveField(Axis(2, 0, 5), Axis(6, -2, 14))
    assert fields["joined"] == fields["pool"]
    assert fields["after"] == ReceptiveField(None, None)
    assert fields["after"].box(0, 0, 24) == Box(0, 0, 24, 24)


def test_every_layer_has_one() -> None:
    probe = planted()
    assert set(receptive_fields(probe)) == {layer.name for layer in probe.layers}
