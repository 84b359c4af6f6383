from __future__ import annotations

import pytest
import torch

from pyserve.errors import InvalidArgumentError
from pyserve.training.optim import (
    OPTIMIZERS,
    export_state,
    group_factors,
    import_state,
    learning_rates,
    make_optimizer,
    parameter_groups,
    set_rates,
)
from tests.training.support import tiny_network


def make(name: str, seed: int = 0) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    network = tiny_network(seed)
    groups = parameter_groups(network.model, network.layer_groups, group_factors(3, 0.01), 0.1)
    return network.model, make_optimizer(name, groups, momentum=0.9)


def give_gradients(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))


def test_discriminative_rates_are_geometric() -> None:
    assert group_factors(3, 0.01) == pytest.approx((0.01, 0.1, 1.0))
    assert group_factors(1, 0.01) == (1.0,)
    assert group_factors(4, 1.0) == (1.0,) * 4
    _, optimizer = make("adamw")
    set_rates(optimizer, 0.5, None)
    assert learning_rates(optimizer) == pytest.approx((0.005, 0.05, 0.5))


def test_norms_and_biases_have_no_weight_decay() -> None:
    model, optimizer = make("sgd")
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    told = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert told == {
        "stem.weight": 0.1,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "body.weight": 0.1,
        "body.bias": 0.0,
        "fc.weight": 0.1,
        "fc.bias": 0.0,
    }


def test_a_parameter_may_have_a_factor_of_its_own() -> None:
    network = tiny_network()
    factors = group_factors(3, 0.01)
    groups = parameter_groups(network.model, network.layer_groups, factors, 0.1, {"norm.bias": 64.0})
    optimizer = make_optimizer("sgd", groups, momentum=0.9)
    set_rates(optimizer, 0.5, None)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    told = {name: rates[id(p)] for name, p in network.model.named_parameters()}
    assert told["norm.bias"] == pytest.approx(64 * told["norm.weight"]) == pytest.approx(64 * 0.005)
    assert told["fc.bias"] == told["fc.weight"] == 0.5
    assert learning_rates(optimizer) == pytest.approx((0.005, 0.05, 0.5))


def test_only_what_learns_is_in_the_optimizer() -> None:
    network = tiny_network()
    network.freeze_body(True)
    groups = parameter_groups(network.model, network.layer_groups, group_factors(3, 0.01), 0.1)
    assert [id(p) for g in groups for p in g["params"]] == [
        id(p) for n, p in network.model.named_parameters() if n in network.head
    ]
    network.model.requires_grad_(False)
    nothing = parameter_groups(network.model, network.layer_groups, group_factors(3, 0.01), 0.1)
    with pytest.raises(InvalidArgumentError, match="no parameter learns"):
        make_optimizer("sgd", nothing, momentum=0.9)


def test_an_unknown_optimizer_names_the_known() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]}]
    with pytest.raises(InvalidArgumentError, match="got 'adam', expected one of adamw, sgd"):
        make_optimizer("adam", groups, momentum=0.9)


def reference_step(
    name: str,
    value: torch.Tensor,
    grad: torch.Tensor,
    state: dict[str, torch.Tensor],
    group: dict[str, float],
    *,
    t: int,
) -> torch.Tensor:
    """The papers' formulas in float64: Nesterov momentum as Sutskever's, AdamW (arXiv 1711.05101)."""
    lr, decay = group["lr"], group["weight_decay"]
    if name == "sgd":
        grad = grad + decay * value
        state["m"] = 0.9 * state["m"] + grad if t > 1 else grad
        return value - lr * (grad + 0.9 * state["m"])
    value = value * (1 - lr * decay)
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * grad
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * grad**2
    return value - lr * (state["m"] / (1 - 0.9**t)) / ((state["v"] / (1 - 0.999**t)).sqrt() + 1e-8)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_follow_the_formulas_on_channels_last_weights(name: str) -> None:
    model, optimizer = make(name)
    before = {n: p.detach().double() for n, p in model.named_parameters()}
    states: dict[str, dict[str, torch.Tensor]] = {n: {} for n in before}
    rate_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    for t in range(1, 4):
        give_gradients(model, t)
        set_rates(optimizer, 0.1 / t, None)
        optimizer.step()
        for n, p in model.named_parameters():
            group = rate_of[id(p)]
            before[n] = reference_step(name, before[n], p.grad.double(), states[n], group, t=t)
            torch.testing.assert_close(p.detach().double(), before[n], rtol=1e-5, atol=1e-6)


def test_the_schedule_moves_momentum_and_beta1() -> None:
    _, sgd = make("sgd")
    set_rates(sgd, 0.1, 0.85)
    assert {g["momentum"] for g in sgd.param_groups} == {0.85}
    _, adamw = make("adamw")
    set_rates(adamw, 0.1, 0.85)
    assert {g["betas"] for g in adamw.param_groups} == {(0.85, 0.999)}
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    group = {"params": [parameter], "weight_decay": 0.0, "lr_factor": 1.0, "layer_group": 0}
    plain = make_optimizer("sgd", [group], momentum=0.0)
    set_rates(plain, 0.1, 0.85)
    assert plain.param_groups[0]["momentum"] == 0.0  # who asked for none gets none


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_put_back_from_plain_tensors_goes_on_bit_for_bit(name: str) -> None:
    model, optimizer = make(name)
    for t in range(2):
        give_gradients(model, t)
        set_rates(optimizer, 0.1, None)
        optimizer.step()
    twin, fresh = make(name, seed=1)
    twin.load_state_dict(model.state_dict())
    stored = {k: v.clone(memory_format=torch.contiguous_format) for k, v in export_state(optimizer).items()}
    assert stored
    import_state(fresh, stored)
    for m, o in ((model, optimizer), (twin, fresh)):
        give_gradients(m, 9)
        set_rates(o, 0.1, None)
        o.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
