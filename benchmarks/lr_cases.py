"""The trainings on which the learning-rate finder's advice is checked: data, network, batch size, optimiser."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pictures import MOBILENET, Parts, breeds, build, cifar10, digits, folder
from pyserve.data.batches import TrainBatches, ValidBatches
from pyserve.data.tensors import PartTensors
from pyserve.data.transforms import presize_for
from pyserve.models.registry import IMAGENET_MEAN, IMAGENET_STD
from pyserve.training.config import LearnerConfig
from pyserve.training.features import FeatureBatches, Features, body_features
from pyserve.training.network import Network
from pyserve.training.step import Batches, TrainStep

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """One training. `data` gives its parts, `weights` a file to begin with, `frozen` a head on fixed features."""

    name: str
    data: Callable[[int], Parts]  # by presize
    architecture: str
    image_size: int
    batch_size: int
    optimizer: str
    steps: int
    augment: str = "none"
    weights: str = ""
    frozen: bool = False
    body_lr_factor: float = 1.0
    precision: str = "float32"
    gradient_accumulation: int = 1

    def config(self, seed: int) -> LearnerConfig:
        """How it learns; what is not told here is the service's default."""
        decay = {"adamw": 0.01, "sgd": 5e-4}[self.optimizer]
        step = TrainStep(self.precision, gradient_accumulation=self.gradient_accumulation, seed=seed)
        return LearnerConfig(
            step,
            self.optimizer,
            weight_decay=decay,
            body_lr_factor=self.body_lr_factor,
            freeze_batch_norm=bool(self.weights),
        )

    def start(self, seed: int) -> tuple[Network, Batches]:
        """The network as it begins, and its training batches."""
        network = self.network(seed)
        if self.frozen:
            return network.head_alone(), FeatureBatches(_features(self), batch_size=self.batch_size, seed=seed)
        batches = TrainBatches(
            self.pictures(), batch_size=self.batch_size, augment=self.augment, seed=seed, **self.view
        )
        return network, batches

    @property
    def view(self) -> dict[str, Any]:
        """How the network sees pictures."""
        return {"image_size": self.image_size, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "device": CPU}

    def pictures(self) -> PartTensors:
        """The training part."""
        return self.data(presize_for(self.image_size, self.augment))[0]

    def network(self, seed: int) -> Network:
        """The whole network, as it begins."""
        classes = int(self.pictures().labels.max()) + 1
        return build(self.architecture, classes, weights=self.weights, seed=seed)


@functools.cache
def _features(case: Case) -> Features:
    batches = ValidBatches(case.pictures(), batch_size=50, **case.view)
    return body_features(case.network(0), batches.epoch(0), "float32", lambda: None)


CATS_DOGS = functools.partial(folder, "cats-dogs")
PRETRAINED = {"architecture": "mobilenet_v2", "weights": MOBILENET}
MIXED = {"precision": "bfloat16", "gradient_accumulation": 2}

CASES = (
    Case("digits at 16 pixels, smallnet, 16, sgd", digits, "smallnet", 16, 16, "sgd", 90),
    Case("CIFAR-10, smallnet, 64, adamw", cifar10, "smallnet", 32, 64, "adamw", 150, "crop"),
    Case("CIFAR-10 at 16 pixels, smallnet, 32, sgd", cifar10, "smallnet", 16, 32, "sgd", 200, "crop"),
    Case("CIFAR-10 at 16 pixels, resnet20, 64, sgd", cifar10, "resnet20", 16, 64, "sgd", 150, "crop"),
    Case("CIFAR-10 at 16 pixels, resnet20, 2 × 32, adamw, bf16", cifar10, "resnet20", 16, 32, "adamw", 100, "crop",
         **MIXED),
    Case("cats or dogs at 32 pixels, smallnet, 32, adamw", CATS_DOGS, "smallnet", 32, 32, "adamw", 120,
         "standard"),
    Case("cats or dogs, head of MobileNetV2, 64, adamw", CATS_DOGS, **PRETRAINED, image_size=128, batch_size=64,
         optimizer="adamw", steps=90, frozen=True),
    Case("37 breeds, head of MobileNetV2, 32, sgd", breeds, **PRETRAINED, image_size=128, batch_size=32,
         optimizer="sgd", steps=100, frozen=True),
    Case("37 breeds at 64 pixels, MobileNetV2, 32, adamw", breeds, **PRETRAINED, image_size=64, batch_size=32,
         optimizer="adamw", steps=100, augment="standard", body_lr_factor=0.01),
    Case("cats or dogs at 64 pixels, MobileNetV2, 16, sgd", CATS_DOGS, **PRETRAINED, image_size=64, batch_size=16,
         optimizer="sgd", steps=100, augment="standard", body_lr_factor=0.1),
)  # fmt: skip
