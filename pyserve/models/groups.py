"""Which parameters are the head, and which learn together: the layer groups of discriminative learning rates.

Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", section 3.1, with three groups
as fast.ai's lessons make them: the first half of the body, the second half, the head.
"""

from __future__ import annotations

from torch import nn

from pyserve.errors import InvalidArgumentError


def head_name(model: nn.Module) -> str:
    """The name of the head: the last linear layer."""
    names: list[str] = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise InvalidArgumentError(f"model: {type(model).__name__} has no linear layer that could be its head")
    return names[-1]


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the head."""
    return list(model.get_submodule(head_name(model)).parameters())


def layer_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """All parameters in three groups, early to late; the last is the head.

    The body is divided between two of its parts (stages of a ResNet, layers of a VGG) where the first group holds
    as nearly as possible half of its convolutions.
    """
    head = {id(parameter) for parameter in head_parameters(model)}
    parts = _parts(model, _convolutions(model))
    depths = [0]
    for part in parts:
        depths.append(depths[-1] + _convolutions(part))
    starts = [i for i, part in enumerate(parts) if i > 0 and _convolutions(part)]
    split = min(starts, key=lambda i: abs(depths[i] - depths[-1] / 2), default=0)
    early = {id(parameter) for part in parts[:split] for parameter in part.parameters()}
    groups: list[list[nn.Parameter]] = [[], [], []]
    for parameter in model.parameters():
        groups[2 if id(parameter) in head else 0 if id(parameter) in early else 1].append(parameter)
    return groups


def _parts(model: nn.Module, convolutions: int) -> list[nn.Module]:
    """The children in order; in place of a child with most of all convolutions, its own children."""
    parts: list[nn.Module] = []
    for child in model.children():
        most = _convolutions(child) > 2 * convolutions / 3
        parts += _parts(child, convolutions) if most and any(child.children()) else [child]
    return parts


def _convolutions(module: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in module.modules())
