"""What each phase of a training runs on: pictures at their sizes, or activations of the frozen body."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pyserve.data.batches import TrainBatches, ValidBatches
from pyserve.data.tensors import PartTensors
from pyserve.training.features import FeatureBatches, Features, body_features
from pyserve.training.learner import Stage
from pyserve.training.network import Network
from pyserve.training.phases import Phase

if TYPE_CHECKING:
    from pyserve.spec import TrainSpec


@dataclass(frozen=True)
class Pictures:
    """Both parts of a dataset, decoded, and how the network sees them."""

    train: PartTensors
    valid: PartTensors
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device

    @property
    def view(self) -> dict[str, Any]:
        """What all batches of pictures are made with."""
        return {"image_size": self.image_size, "mean": self.mean, "std": self.std, "device": self.device}


class Stages:
    """The stages of a training's phases.

    Args:
        spec: how pictures are batched and augmented.
        network: the whole one.
        pictures: the data.
        phases: of the training.
        before_batch: called before each batch whose activations are computed; may raise to end it.
    """

    def __init__(
        self,
        spec: TrainSpec,
        network: Network,
        pictures: Pictures,
        phases: tuple[Phase, ...],
        before_batch: Callable[[], None],
    ) -> None:
        self._spec, self._network, self._pictures, self._phases = spec, network, pictures, phases
        self._before_batch = before_batch
        self._features: tuple[Features, Features] | None = None

    def of(self, index: int) -> Stage:
        """The stage of a phase."""
        phase = self._phases[index]
        if phase.precomputed:
            return self.on_activations()
        if not phase.rate_from_activations:
            self._features = None  # from now on the body changes, or nobody asks again
        spec, pictures = self._spec, self._pictures
        begin = sum(earlier.epochs for earlier in self._phases[:index])

        def size_of(epoch: int) -> int:
            return phase.image_size_at(max(epoch - begin, 0), pictures.image_size)

        train = TrainBatches(
            pictures.train,
            batch_size=spec.batch_size,
            augment=spec.augment,
            seed=spec.seed,
            balanced=spec.balanced_sampling,
            max_shift=spec.max_shift,
            alternate_flips=spec.alternate_flips,
            size_of=size_of,
            **pictures.view,
        )
        return Stage(self._network, train, self.valid_batches())

    def on_activations(self) -> Stage:
        """The head alone, on the activations of a body that is still as it came; computed at the first call."""
        if self._features is None:
            self._features = self._compute()
        spec, (train, valid) = self._spec, self._features
        return Stage(
            self._network.head_alone(),
            FeatureBatches(train, batch_size=spec.batch_size, seed=spec.seed, balanced=spec.balanced_sampling),
            FeatureBatches(valid, batch_size=spec.batch_size, shuffled=False),
        )

    def valid_batches(self) -> ValidBatches:
        """The validation part as pictures."""
        return ValidBatches(self._pictures.valid, batch_size=self._spec.batch_size, **self._pictures.view)

    def _compute(self) -> tuple[Features, Features]:
        parts = (self._pictures.train, self._pictures.valid)
        train, valid = (
            body_features(
                self._network,
                ValidBatches(part, batch_size=self._spec.batch_size, **self._pictures.view).epoch(0),
                self._spec.precision,
                self._before_batch,
            )
            for part in parts
        )
        return train, valid
