"""The trainings on which the learning-rate finder's advice is checked: data, network, batch size, optimiser."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

import report

sys.path.insert(0, str(report.ROOT))

from pyserve import models
from pyserve.data.batches import TrainBatches, ValidBatches
from pyserve.data.folder import ScanOptions, scan
from pyserve.data.manifest import Item
from pyserve.data.tensors import PartTensors, load_part
from pyserve.data.transforms import presize_for
from pyserve.kernels.fuse import fuse
from pyserve.models.registry import IMAGENET_MEAN, IMAGENET_STD
from pyserve.training.features import FeatureBatches, body_features
from pyserve.training.learner import LearnerConfig
from pyserve.training.network import Network
from pyserve.training.step import Batches, TrainStep
from tests.cifar10 import read

DATA = Path(os.environ.get("PYSERVE_TEST_DATA") or report.ROOT.parent / "shared" / "data").resolve()
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyserve-benchmarks"
MOBILENET = "mobilenet_v2_imagenet1k_from_coral_ptq.pth"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """One training. `data` gives its parts, `weights` a file to begin with, `frozen` a head on fixed features."""

    name: str
    data: Callable[[int], tuple[PartTensors, PartTensors]]  # by presize
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

    def start(self, seed: int) -> tuple[Network, Batches, Batches]:
        """The network as it begins, and its training and validation batches."""
        part, held_out = self.parts()
        network = self._network(seed)
        view = {"image_size": self.image_size, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "device": CPU}
        valid = ValidBatches(held_out, batch_size=100, **view)
        if not self.frozen:
            train = TrainBatches(part, batch_size=self.batch_size, augment=self.augment, seed=seed, **view)
            return network, train, valid
        fixed = [_features(self, which) for which in ("train", "valid")]
        head = network.head_alone()
        return (
            head,
            FeatureBatches(fixed[0], batch_size=self.batch_size, seed=seed),
            FeatureBatches(fixed[1], batch_size=100, shuffled=False),
        )

    def parts(self) -> tuple[PartTensors, PartTensors]:
        """Training and validation pictures."""
        return self.data(presize_for(self.image_size, self.augment))

    def _network(self, seed: int) -> Network:
        torch.manual_seed(seed)
        train, _ = self.parts()
        model = models.create_model(self.architecture, int(train.labels.max()) + 1)
        if self.weights:
            models.load_weights(model, self.weights, roots=[DATA / "weights"], cache_dir=CACHE)
        named = Network.of(model, models.layer_groups(model), models.head_parameters(model))
        fused = fuse(model, inference=False).to(memory_format=torch.channels_last)
        return Network(fused, named.layer_groups, named.head)


@functools.cache
def _features(case: Case, which: str):
    part = case.parts()[which == "valid"]
    batches = ValidBatches(
        part, batch_size=50, image_size=case.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD, device=CPU
    )
    return body_features(case._network(0), batches.epoch(0), "float32", lambda: None)


def _part(images: torch.Tensor, labels: torch.Tensor) -> PartTensors:
    items = tuple(Item(str(i), int(label), "train") for i, label in enumerate(labels))
    return PartTensors(images, labels.long(), items)


@functools.cache
def cifar10(presize: int) -> tuple[PartTensors, PartTensors]:
    """10,000 of the training pictures, 1,000 of the test pictures."""
    parts = []
    for part, files in (("train", range(10)), ("test", range(1))):
        images, labels = read(DATA, part, files)  # type: ignore[arg-type]
        parts.append(_part(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)))
    assert presize == parts[0].images.shape[-1]
    return parts[0], parts[1]


@functools.cache
def digits(presize: int) -> tuple[PartTensors, PartTensors]:
    """scikit-learn's handwritten digits, every fifth held out."""
    from sklearn.datasets import load_digits

    found = load_digits()
    grey = torch.from_numpy(found.images).float()[:, None] / 16 * 255
    large = functional.interpolate(grey, (presize, presize), mode="bilinear", align_corners=False)
    images = large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(np.asarray(found.target))
    held = torch.arange(len(labels)) % 5 == 0
    return _part(images[~held], labels[~held]), _part(images[held], labels[held])


@functools.cache
def folder(name: str, presize: int) -> tuple[PartTensors, PartTensors]:
    """A folder of the test data."""
    manifest = scan(name, DATA / name, ScanOptions(), max_pixels=10**8, max_files=10**6)
    train, valid = (load_part(manifest, part, presize, CACHE) for part in ("train", "valid"))
    return train, valid


@functools.cache
def breeds(presize: int) -> tuple[PartTensors, PartTensors]:
    """The pets, by breed: the file's name up to its number."""
    parts = folder("cats-dogs-oxford", presize)
    names = [[Path(item.path).name.rpartition("_")[0] for item in part.items] for part in parts]
    known = sorted({name for part in names for name in part})
    labels = [torch.tensor([known.index(name) for name in part]) for part in names]
    train, valid = (_part(part.images, label) for part, label in zip(parts, labels, strict=True))
    return train, valid


CATS_DOGS = functools.partial(folder, "cats-dogs")
PRETRAINED = {"architecture": "mobilenet_v2", "weights": MOBILENET}
MIXED = {"precision": "bfloat16", "gradient_accumulation": 2}

CASES = (
    Case("digits, smallnet, 16, sgd", digits, "smallnet", 16, 16, "sgd", 90),
    Case("CIFAR-10, smallnet, 64, adamw", cifar10, "smallnet", 32, 64, "adamw", 150, "crop"),
    Case("CIFAR-10, smallnet, 32, sgd", cifar10, "smallnet", 32, 32, "sgd", 200, "crop"),
    Case("CIFAR-10, resnet20, 64, sgd", cifar10, "resnet20", 32, 64, "sgd", 150, "crop"),
    Case("CIFAR-10, resnet20, 2 × 32, adamw, bf16", cifar10, "resnet20", 32, 32, "adamw", 100, "crop", **MIXED),
    Case("cats or dogs, smallnet, 32, adamw", CATS_DOGS, "smallnet", 32, 32, "adamw", 150, "standard"),
    Case("cats or dogs, head of MobileNetV2, 64, adamw", CATS_DOGS, **PRETRAINED, image_size=128, batch_size=64,
         optimizer="adamw", steps=90, frozen=True),
    Case("37 breeds, head of MobileNetV2, 32, sgd", breeds, **PRETRAINED, image_size=128, batch_size=32,
         optimizer="sgd", steps=100, frozen=True),
    Case("37 breeds, MobileNetV2, 32, adamw", breeds, **PRETRAINED, image_size=96, batch_size=32,
         optimizer="adamw", steps=100, augment="standard", body_lr_factor=0.01),
    Case("cats or dogs, MobileNetV2, 16, sgd", CATS_DOGS, **PRETRAINED, image_size=96, batch_size=16,
         optimizer="sgd", steps=100, augment="standard", body_lr_factor=0.1),
)  # fmt: skip
