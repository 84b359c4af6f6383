"""A model with its layer groups: what learns, at which rate, and which BatchNorm statistics stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from pyserve.models import HasRateFactors

_BATCH_NORM = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Network:
    """A model and the names of its parameters, grouped early to late; `head` names those of the new head.

    Names rather than parameters, so that a fused or copied model has the same groups. `fixed` names those that the
    architecture itself holds fixed: they never learn. `rate_factors` has factors on the rates of some.
    """

    model: nn.Module
    layer_groups: tuple[tuple[str, ...], ...]
    head: frozenset[str]
    fixed: frozenset[str] = frozenset()
    rate_factors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: nn.Module, layer_groups: Sequence[Iterable[nn.Parameter]], head: Iterable[nn.Parameter]
    ) -> Network:
        """From the model's own parameter objects, as the architecture made them."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = tuple(tuple(names[id(p)] for p in group) for group in layer_groups)
        fixed = frozenset(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
        factors = model.rate_factors() if isinstance(model, HasRateFactors) else {}
        return cls(model, groups, frozenset(names[id(p)] for p in head), fixed, factors)

    @property
    def head_module(self) -> nn.Module:
        """The module that the head's parameters belong to."""
        return self.model.get_submodule(self._head_name)

    def head_alone(self) -> Network:
        """The head as a network of its own, on the same parameters: for features in place of pictures."""
        names = tuple(name.rpartition(".")[2] for name in sorted(self.head))
        return Network(self.head_module, (names,), frozenset(names))

    @property
    def _head_name(self) -> str:
        (name,) = {name.rpartition(".")[0] for name in self.head}
        return name

    def freeze_body(self, frozen: bool) -> None:
        """Let only the head learn, or (False) everything."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in self.fixed and (not frozen or name in self.head))

    def train_mode(self, *, freeze_batch_norm: bool) -> None:
        """Training mode; with `freeze_batch_norm` the body's BatchNorms use and keep their statistics."""
        self.model.train()
        if freeze_batch_norm:
            for module in self.body_batch_norms():
                module.eval()

    def body_batch_norms(self) -> list[nn.Module]:
        """The BatchNorm modules outside the head."""
        return [
            module
            for name, module in self.model.named_modules()
            if isinstance(module, _BATCH_NORM) and name != self._head_name
        ]

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of parameters and buffers on the CPU, plain (contiguous) layout."""
        return {
            name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, value in self.model.state_dict().items()
        }

    def is_finite(self) -> bool:
        """Whether every parameter and buffer is finite; waits for the device once."""
        checks = [v.isfinite().all() for v in self.model.state_dict().values() if v.is_floating_point()]
        return not checks or bool(torch.stack(checks).all())
