"""Optimisers on layer groups: discriminative learning rates, no weight decay on norms and biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pyserve.errors import InvalidArgumentError

OPTIMIZERS = ("adamw", "sgd")
_ADAMW_BETA2 = 0.999


def group_factors(count: int, body_lr_factor: float) -> tuple[float, ...]:
    """Factors on the head's learning rate for `count` layer groups, early to late.

    Geometric from `body_lr_factor` to 1: (0.01, 0.1, 1) for three groups and 0.01.
    """
    if count <= 1:
        return (1.0,) * count
    return tuple(body_lr_factor ** ((count - 1 - i) / (count - 1)) for i in range(count))


def parameter_groups(
    model: nn.Module,
    layer_groups: Sequence[Sequence[str]],
    factors: Sequence[float],
    weight_decay: float,
    own_factors: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Optimiser groups of the parameters that learn (`requires_grad`).

    Each layer group gives up to two: weights with decay, and norms and biases (one dimension or none) without;
    more where parameters have factors of their own. Every group carries `lr_factor`, `own_factor`, how much of
    that is its parameters' own, and `layer_group`, its index.

    Args:
        model: whose parameters are named.
        layer_groups: names, early to late.
        factors: of each layer group's rate.
        weight_decay: of weights.
        own_factors: name → factor of that parameter's rate beside its layer group's; 1 where absent.
    """
    parameters = dict(model.named_parameters())
    groups: dict[tuple[int, bool, float], dict[str, Any]] = {}
    for index, (names, factor) in enumerate(zip(layer_groups, factors, strict=True)):
        learning = [(name, parameters[name]) for name in names if parameters[name].requires_grad]
        for name, parameter in sorted(learning, key=lambda pair: pair[1].ndim <= 1):  # stable: weights first
            own = (own_factors or {}).get(name, 1.0)
            group: dict[str, Any] = {
                "params": [],
                "weight_decay": weight_decay if parameter.ndim > 1 else 0.0,
                "lr_factor": factor * own,
                "own_factor": own,
                "layer_group": index,
            }
            groups.setdefault((index, parameter.ndim > 1, own), group)["params"].append(parameter)
    return list(groups.values())


def make_optimizer(
    name: str, groups: list[dict[str, Any]], *, momentum: float, nesterov: bool = True
) -> torch.optim.Optimizer:
    """SGD (Nesterov momentum unless told otherwise) or AdamW, torch's fused form; `set_rates` gives the rates.

    Raises:
        InvalidArgumentError: an unknown name, or nothing that learns.
    """
    if not groups:
        raise InvalidArgumentError("optimizer: no parameter learns: the whole model is frozen")
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov and momentum > 0, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=(momentum, _ADAMW_BETA2), fused=True)
    raise InvalidArgumentError.field("optimizer", name, f"one of {', '.join(OPTIMIZERS)}")


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, momentum: float | None) -> None:
    """Give each group its learning rate (head's × the group's factor) and, unless None, its momentum."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_factor"]
        if momentum is None:
            continue
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        elif group["momentum"] > 0:
            group["momentum"] = momentum


def learning_rates(optimizer: torch.optim.Optimizer) -> tuple[float, ...]:
    """The current rate of each layer group that learns, head last, without parameters' own factors."""
    rates = {group["layer_group"]: float(group["lr"]) / group["own_factor"] for group in optimizer.param_groups}
    return tuple(rates.values())


def export_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's tensors, keyed "parameter index.name" (fused optimisers keep nothing but tensors)."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": value
        for index, entry in state.items()
        for key, value in entry.items()
        if isinstance(value, torch.Tensor)
    }


def import_state(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `export_state` gave, in each parameter's own memory layout.

    Not `load_state_dict`: fused kernels walk parameter and state in memory order, so a channels-last parameter
    needs channels-last moments, and a file has lost that.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            own = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
            own.copy_(value)
        else:
            own = value.to(parameter.device)
        optimizer.state[parameter][key] = own
