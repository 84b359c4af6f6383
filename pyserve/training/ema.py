"""A moving average of a network's weights (Polyak & Juditsky 1992): often better than the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """The average of a model's parameters and BatchNorm statistics over the steps so far.

    The decay grows to its value as (1 + t) / (10 + t) with the updates t, so that a short training is not averaged
    with its random beginning (the warm-up of TensorFlow's ExponentialMovingAverage).

    Args:
        model: whose state is averaged; it stays as it is.
        decay: in the long run, 0 < decay < 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self.updates = 0
        self._live = dict(model.state_dict(keep_vars=True))
        self._average = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model as it is now; call it after each step."""
        self.updates += 1
        weight = 1 - min(self._decay, (1 + self.updates) / (10 + self.updates))
        floats = [name for name, value in self._live.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self._average[name] for name in floats], [self._live[name].detach() for name in floats], weight
        )
        for name in self._live.keys() - set(floats):
            self._average[name].copy_(self._live[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged state within the block, and its own again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, torch.Tensor]:
        """The averaged state, by name."""
        return dict(self._average)

    def load(self, state: dict[str, torch.Tensor], updates: int) -> None:
        """Go on from what `state` gave after so many updates."""
        self.updates = updates
        for name, value in state.items():
            self._average[name].copy_(value)

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self._live.items():
            kept = value.detach().clone()
            value.copy_(self._average[name])
            self._average[name].copy_(kept)
