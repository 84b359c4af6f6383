"""`fuse` on every registered network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyserve import models
from pyserve.kernels import AddReLU, fuse
from pyserve.kernels.layers import BatchNorm2d, Conv2d, FoldedConv2d
from pyserve.models.cifar_resnet import PadShortcut
from tests.models.support import model_with_statistics, pictures, relative_error

NAMES = sorted(models.architectures())


def size_of(name: str) -> int:
    return 32 if models.get_architecture(name).image_size == 32 else 64


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_both_forms_give_the_outputs_of_the_original(name: str) -> None:
    model = model_with_statistics(name)
    x = pictures(2, 3, size_of(name), size_of(name))
    expected = model(x)
    for inference in (False, True):
        fused = fuse(model, inference=inference)
        assert not fused.training
        assert relative_error(fused(x), expected) < 1e-5, f"inference={inference}"
    assert relative_error(model(x), expected) == 0
    assert type(model) is not type(fused)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_beside_our_operators(name: str) -> None:
    model = model_with_statistics(name)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    folded = fuse(model, inference=True)
    apart = 4 if name == "whitenednet" else 0  # convolutions with a pooling, or nothing, between them and a norm
    assert sum(type(m) is (FoldedConv2d if norms else Conv2d) for m in folded.modules()) == convolutions - apart
    assert sum(isinstance(m, Conv2d) for m in folded.modules()) == convolutions
    others = {"Linear", "Dropout", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "MaxPool2d"}
    unfused = {type(m) for m in called(folded) if type(m).__name__ not in others}
    assert unfused <= {Conv2d, FoldedConv2d, AddReLU, nn.Identity, PadShortcut, *((BatchNorm2d,) if apart else ())}
    on_features = [m for m in called(folded) if isinstance(m, AddReLU)]
    assert len(on_features) == (2 if name.startswith("vgg") else 0)  # after VGG's linear layers
    trained = fuse(model, inference=False)
    assert not any(isinstance(m, nn.ReLU | nn.ReLU6) for m in called(trained))
    assert sum(type(m) is Conv2d for m in called(trained)) == convolutions


def called(model: nn.Module) -> list[nn.Module]:
    """The modules without children that a forward calls."""
    seen: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: seen.append(module))
        for module in model.modules()
        if not list(module.children())
    ]
    with torch.no_grad():
        model(pictures(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_state_dicts_go_both_ways(name: str) -> None:
    model, other = model_with_statistics(name), model_with_statistics(name, seed=6)
    x = pictures(1, 3, 32, 32)
    for inference in (False, True):
        fused = fuse(copy.deepcopy(other), inference=inference)
        assert list(fused.state_dict()) == list(model.state_dict())
        fused.load_state_dict(model.state_dict())
        assert relative_error(fused(x), model(x)) < 1e-5, f"inference={inference}"
        plain = copy.deepcopy(other)
        plain.load_state_dict(fused.state_dict())
        assert all(torch.equal(v, plain.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_the_training_form_trains_like_the_original(name: str) -> None:
    model = model_with_statistics(name).double().train()
    fused = fuse(copy.deepcopy(model), inference=False)
    assert fused.training
    x = pictures(3, 3, 32, 32).double()
    outputs = []
    for network in (model, fused):
        torch.manual_seed(1)  # dropout
        outputs.append(network(x))
        outputs[-1].square().sum().backward()
    assert relative_error(outputs[1], outputs[0]) < 1e-9
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    for key, parameter in fused.named_parameters():
        assert (parameter.grad is not None) == (gradients[key] is not None) == parameter.requires_grad, key
        if parameter.grad is None:
            continue
        assert relative_error(parameter.grad, gradients[key]) < 1e-7, key
    buffers = dict(model.named_buffers())
    for key, value in fused.named_buffers():  # what BatchNorm has learnt
        torch.testing.assert_close(value, buffers[key], rtol=1e-9, atol=1e-9)
