from __future__ import annotations

import copy
import dataclasses

import torch

from tests.training.support import tiny_network


def learning(network) -> set[str]:  # type: ignore[no-untyped-def]
    return {n for n, p in network.model.named_parameters() if p.requires_grad}


def test_groups_and_head_are_names_that_a_copy_shares() -> None:
    network = tiny_network()
    assert network.layer_groups == (
        ("stem.weight", "norm.weight", "norm.bias"),
        ("body.weight", "body.bias"),
        ("fc.weight", "fc.bias"),
    )
    twin = dataclasses.replace(network, model=copy.deepcopy(network.model))
    twin.freeze_body(True)
    assert learning(twin) == {"fc.weight", "fc.bias"}
    assert learning(network) == {n for g in network.layer_groups for n in g}


def test_freezing_and_unfreezing() -> None:
    network = tiny_network()
    network.freeze_body(True)
    network.freeze_body(False)
    assert len(learning(network)) == 7


def test_frozen_batch_norm_keeps_its_statistics_while_it_learns() -> None:
    network = tiny_network()
    x = torch.randn(4, 3, 6, 6)
    before = network.weights()
    network.train_mode(freeze_batch_norm=True)
    assert network.model.drop.training
    network.model(x).sum().backward()
    assert torch.equal(network.weights()["norm.running_mean"], before["norm.running_mean"])
    assert network.model.norm.weight.grad is not None
    network.train_mode(freeze_batch_norm=False)
    network.model(x)
    assert not torch.equal(network.weights()["norm.running_mean"], before["norm.running_mean"])


def test_the_heads_own_batch_norm_is_not_the_bodys() -> None:
    network = tiny_network()
    with_norm = dataclasses.replace(network, head=frozenset({"norm.weight", "norm.bias"}))
    assert with_norm.body_batch_norms() == []
    assert network.body_batch_norms() == [network.model.norm]


def test_weights_are_a_copy_and_are_checked_for_finiteness() -> None:
    network = tiny_network()
    weights = network.weights()
    with torch.no_grad():
        network.model.norm.running_var[0] = float("inf")
    assert bool(weights["norm.running_var"].isfinite().all())
    assert not network.is_finite()
