from __future__ import annotations

import pytest
import torch

from pyserve import models
from pyserve.models.whitened import WhitenedNet
from pyserve.training.network import Network
from tests.models.support import pictures


@pytest.mark.parametrize("size", [9, 16, 32, 64])
def test_it_takes_small_pictures(size: int) -> None:
    model = models.create_model("whitenednet", 10).eval()
    with torch.no_grad():
        assert model(pictures(1, 3, size, size)).shape == (1, 10)
    assert sum(p.numel() for p in model.parameters()) == 1_972_802


def test_its_first_layer_whitens_the_patches() -> None:
    model = WhitenedNet(2)
    x = pictures(8, 3, 16, 16)
    x = x + 3 * x.mean((1, 2, 3), keepdim=True) + 0.2 * x.roll(1, 3)  # patches that are far from white
    model.begin_with(x)
    with torch.no_grad():
        y = model.whiten(x).permute(0, 2, 3, 1).reshape(-1, 24)
    torch.testing.assert_close(y[:, :12], -y[:, 12:])
    moments = y[:, :12].T @ y[:, :12] / len(y)
    torch.testing.assert_close(moments, torch.eye(12), rtol=0, atol=0.02)


def test_its_other_convolutions_begin_as_the_identity() -> None:
    model = models.create_model("whitenednet", 2)
    conv = model.get_submodule("stages.0.0")
    x = pictures(1, 24, 5, 5)
    torch.testing.assert_close(conv(x)[:, :24], x)


def test_what_the_architecture_fixes_never_learns() -> None:
    model = models.create_model("whitenednet", 2)
    network = Network.of(model, models.layer_groups(model), models.head_parameters(model))
    scales = {f"stages.{stage}.{place}.weight" for stage in range(3) for place in (2, 5)}
    assert network.fixed == {"whiten.weight", *scales}
    assert network.rate_factors == {name.replace("weight", "bias"): 64.0 for name in scales}
    for frozen in (False, True, False):
        network.freeze_body(frozen)
        learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert learning == (network.head if frozen else dict(model.named_parameters()).keys() - network.fixed)
