"""CIFAR-10 as arrays, from the test data's mosaics (its README tells the layout)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FILES = {"test": ("test-{:02d}.webp", 10), "train": ("train-{:02d}.avif", 50)}


def read(
    test_data: Path, part: Literal["train", "test"], files: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels uint8 [N], in the original order.

    Args:
        test_data: the folder of the test data.
        part: 50,000 training or 10,000 test images.
        files: only these files of 1,000 images each; default: all.
    """
    folder = test_data / "cifar10"
    pattern, count = _FILES[part]
    chosen = range(count) if files is None else files
    images = np.concatenate([_tiles(_mosaic(folder / pattern.format(k))) for k in chosen])
    labels = np.fromfile(folder / f"{part}-labels.bin", dtype=np.uint8).reshape(count, 1000)
    return images, labels[list(chosen)].reshape(-1)


def _mosaic(path: Path) -> np.ndarray:
    lossless = path.with_suffix(".webp")  # stands in for the AVIF file of its name where there is one
    with Image.open(lossless if lossless.is_file() else path) as image:
        return np.asarray(image.convert("RGB"))


def _tiles(mosaic: np.ndarray) -> np.ndarray:
    """[800, 1280, 3] to [1000, 32, 32, 3]."""
    return mosaic.reshape(25, 32, 40, 32, 3).swapaxes(1, 2).reshape(1000, 32, 32, 3)
