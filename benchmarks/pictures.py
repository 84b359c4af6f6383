"""Pictures of the test data as tensors, and networks on our kernels: for benchmarks that train in one process."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

import report

sys.path.insert(0, str(report.ROOT))

from pyserve import models
from pyserve.data.folder import ScanOptions, scan
from pyserve.data.manifest import Item
from pyserve.data.tensors import PartTensors, load_part
from pyserve.data.transforms import shrunk
from pyserve.kernels.fuse import fuse
from pyserve.training.network import Network
from tests.cifar10 import read

DATA = Path(os.environ.get("PYSERVE_TEST_DATA") or report.ROOT.parent / "shared" / "data").resolve()
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyserve-benchmarks"
MOBILENET = "mobilenet_v2_imagenet1k_from_coral_ptq.pth"

Parts = tuple[PartTensors, PartTensors]  # training, validation


def build(architecture: str, classes: int, *, weights: str = "", seed: int = 0) -> Network:
    """A network in training form, channels-last, on the CPU."""
    torch.manual_seed(seed)
    model = models.create_model(architecture, classes)
    if weights:
        models.load_weights(model, weights, roots=[DATA / "weights"], cache_dir=CACHE)
    named = Network.of(model, models.layer_groups(model), models.head_parameters(model))
    fused = fuse(model, inference=False).to(memory_format=torch.channels_last)
    return Network(fused, named.layer_groups, named.head)


def _part(images: torch.Tensor, labels: torch.Tensor) -> PartTensors:
    items = tuple(Item(str(i), int(label), "train") for i, label in enumerate(labels))
    return PartTensors(images, labels.long(), items)


@functools.cache
def cifar10(presize: int, train_files: int = 10, test_files: int = 1) -> Parts:
    """1,000 pictures a file, of 50 for training and 10 for testing; of 32 pixels, or shrunk."""
    parts = []
    for part, files in (("train", range(train_files)), ("test", range(test_files))):
        images, labels = read(DATA, part, files)  # type: ignore[arg-type]
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        parts.append(_part(shrunk(pixels, presize), torch.from_numpy(labels)))
    return parts[0], parts[1]


@functools.cache
def digits(presize: int) -> Parts:
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
def folder(name: str, presize: int) -> Parts:
    """A folder of the test data."""
    manifest = scan(name, DATA / name, ScanOptions(), max_pixels=10**8, max_files=10**6)
    train, valid = (load_part(manifest, part, presize, CACHE) for part in ("train", "valid"))
    return train, valid


@functools.cache
def breeds(presize: int) -> Parts:
    """The pets, by breed: the file's name up to its number."""
    parts = folder("cats-dogs-oxford", presize)
    names = [[Path(item.path).name.rpartition("_")[0] for item in part.items] for part in parts]
    known = sorted({name for part in names for name in part})
    labels = [torch.tensor([known.index(name) for name in part]) for part in names]
    train, valid = (_part(part.images, label) for part, label in zip(parts, labels, strict=True))
    return train, valid
