from __future__ import annotations

import typing

import pytest
import torch
from torch import nn

from pyserve import models
from pyserve.errors import InvalidArgumentError
from pyserve.models import registry
from pyserve.spec import train as train_spec
from pyserve.spec.train import LEAST_IMAGE_SIZE
from tests.models.support import pictures

NAMES = sorted(models.architectures())


def test_what_is_registered() -> None:
    cifar = {"smallnet", "whitenednet", "resnet20", "resnet56"}
    imagenet = {"resnet18", "resnet34", "resnet50", "vgg16", "vgg16_bn", "mobilenet_v2"}
    assert set(NAMES) >= cifar | imagenet
    assert {name for name in NAMES if models.get_architecture(name).imagenet} == imagenet
    assert all(models.get_architecture(name).image_size == (32 if name in cifar else 224) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_gives_logits_of_its_classes(name: str) -> None:
    model = models.create_model(name, 3)
    assert model.training
    assert model.architecture == name
    with torch.no_grad():
        assert model.eval()(pictures(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("name", NAMES)
def test_the_least_size_is_the_least(name: str) -> None:
    model, own = models.create_model(name, 2).eval(), models.get_architecture(name).least_image_size
    least = max(own, LEAST_IMAGE_SIZE)
    with torch.no_grad():
        assert model(pictures(1, 3, least, least)).shape == (1, 2)
        if own > LEAST_IMAGE_SIZE:
            with pytest.raises(RuntimeError):
                model(pictures(1, 3, least - 1, least - 1))


def test_specs_have_defaults_of_architectures_that_exist() -> None:
    known = {*train_spec._ARCHITECTURE_DEFAULTS, *train_spec._ARCHITECTURE_RATE}
    assert known
    assert known <= set(NAMES)


def test_the_seed_makes_the_weights() -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(next(models.create_model("smallnet", 2).parameters()))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("size", [8, 9, 28, 64])
def test_the_small_network_takes_small_pictures(size: int) -> None:
    model = models.create_model("smallnet", 10).eval()
    with torch.no_grad():
        assert model(pictures(1, 3, size, size)).shape == (1, 10)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


@pytest.mark.parametrize(("name", "parameters"), [("resnet20", 269_722), ("resnet56", 853_018)])
def test_the_cifar_resnets_are_as_large_as_published(name: str, parameters: int) -> None:
    assert sum(p.numel() for p in models.create_model(name, 10).parameters()) == parameters


def test_the_shortcut_of_option_a_pads_with_zero_channels() -> None:
    block = models.create_model("resnet20", 10).get_submodule("layer2.0")
    x = pictures(1, 16, 5, 4)
    y = typing.cast("nn.Module", block.shortcut)(x)
    assert y.shape == (1, 32, 3, 2)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_an_unknown_name_is_told_all() -> None:
    with pytest.raises(InvalidArgumentError, match="architecture: got 'resnet19', expected one of ") as error:
        models.create_model("resnet19", 2)
    assert all(name in error.value.message for name in NAMES)


@pytest.mark.parametrize("classes", [0, -3])
def test_a_network_has_classes(classes: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"num_classes: got {classes}, expected ≥ 1"):
        models.create_model("smallnet", classes)


def test_registering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ARCHITECTURES", dict(registry._ARCHITECTURES))

    @models.register("one_layer", image_size=4)
    def one_layer(num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes))

    assert models.create_model("one_layer", 2)(pictures(1, 3, 4, 4)).shape == (1, 2)
    with pytest.raises(InvalidArgumentError, match="a name that is not registered yet"):
        models.register("resnet18", image_size=8)(one_layer)
