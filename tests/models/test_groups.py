from __future__ import annotations

import pytest
from torch import nn

from pyserve import models
from pyserve.errors import InvalidArgumentError
from pyserve.kernels import fuse

NAMES = sorted(models.architectures())

SECOND_GROUP_BEGINS = {
    "resnet18": "layer3.0.conv1.weight",
    "resnet34": "layer3.0.conv1.weight",
    "resnet50": "layer3.0.conv1.weight",
    "resnet20": "layer2.0.conv1.weight",
    "resnet56": "layer2.0.conv1.weight",
    "vgg16": "features.14.weight",
    "vgg16_bn": "features.20.weight",
    "mobilenet_v2": "features.10.conv.0.0.weight",
    "smallnet": "stage2.0.0.weight",
    "whitenednet": "stages.1.0.weight",
}


@pytest.mark.parametrize("name", NAMES)
def test_three_groups_hold_every_parameter_once_and_end_with_the_head(name: str) -> None:
    model = models.create_model(name, 4)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group] for group in models.layer_groups(model)]
    assert [key for group in groups for key in group] == list(names.values())
    assert groups[1][0] == SECOND_GROUP_BEGINS[name]
    assert groups[2] == [names[id(parameter)] for parameter in models.head_parameters(model)]
    assert groups[2] == [f"{models.head_name(model)}.weight", f"{models.head_name(model)}.bias"]
    assert model.get_submodule(models.head_name(model)).weight.shape[0] == 4


@pytest.mark.parametrize("name", ["resnet18", "smallnet"])
def test_a_fused_model_has_the_same_groups(name: str) -> None:
    model = models.create_model(name, 4)
    fused = fuse(model, inference=False)
    ids = [[id(parameter) for parameter in group] for group in models.layer_groups(model)]
    assert [[id(parameter) for parameter in group] for group in models.layer_groups(fused)] == ids


def test_a_model_of_one_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    assert [len(group) for group in models.layer_groups(model)] == [0, 2, 2]


def test_a_model_without_a_linear_layer_has_no_head() -> None:
    with pytest.raises(InvalidArgumentError, match="Sequential has no linear layer"):
        models.head_parameters(nn.Sequential(nn.Conv2d(3, 4, 3)))
