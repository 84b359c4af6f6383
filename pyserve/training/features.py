"""Activations of a frozen body, computed once: what its head alone is then trained on, at a fraction of the time.

Without augmentation a frozen body in evaluation mode answers a picture with the same activations in every epoch
(fastai 0.7 calls it precompute). The head is the last linear layer; dropout in front of it belongs to the body and
is off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyserve.data.order import epoch_order
from pyserve.training.network import Network
from pyserve.training.step import Batch


@dataclass(frozen=True)
class Features:
    """What the head is given of each picture, on the device."""

    values: torch.Tensor  # float32 [N, features]
    labels: torch.Tensor  # int64 [N]


@torch.no_grad()
def body_features(
    network: Network, batches: Iterable[Batch], precision: str, before_batch: Callable[[], None]
) -> Features:
    """Run the body over all pictures, in evaluation mode.

    Args:
        network: whose head is left out; its modes are put back.
        batches: the pictures, each once.
        precision: "float32" or "bfloat16" (autocast).
        before_batch: called before each batch; may raise to end it.
    """
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].float())

    labels = []
    was_training = {module: module.training for module in network.model.modules()}
    hook = network.head_module.register_forward_pre_hook(keep)
    network.model.eval()
    try:
        for x, y in batches:
            before_batch()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                network.model(x)
            labels.append(y)
    finally:
        hook.remove()
        for module, training in was_training.items():
            module.training = training
    return Features(torch.cat(seen), torch.cat(labels))


class FeatureBatches:
    """Batches of features in place of pictures, in the order in which `TrainBatches` has the pictures.

    Args:
        features: of the whole part.
        batch_size, seed, balanced: as for `TrainBatches`.
        shuffled: False keeps the part's own order, as `ValidBatches` does.
    """

    def __init__(
        self, features: Features, *, batch_size: int, seed: int = 0, balanced: bool = False, shuffled: bool = True
    ) -> None:
        self._features, self._batch_size, self._seed = features, batch_size, seed
        self._balanced, self._shuffled = balanced, shuffled

    def __len__(self) -> int:
        """Batches in an epoch; of a shuffled one a last picture alone is left out, as in `TrainBatches`."""
        count = len(self._features.labels)
        if not self._shuffled:
            return math.ceil(count / self._batch_size)
        whole, rest = divmod(count, self._batch_size)
        return 0 if count < 2 else whole + (rest > 1)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_step` on: float32 [N, features], int64 [N]."""
        values, labels = self._features.values, self._features.labels
        order = torch.arange(len(labels))
        if self._shuffled:
            order = epoch_order(labels.cpu(), seed=self._seed, epoch=epoch, balanced=self._balanced)
        for index in torch.split(order.to(labels.device), self._batch_size)[start_step : len(self)]:
            yield values[index], labels[index]
