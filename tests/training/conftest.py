"""Real pictures of a few pixels, for the tests that train from a spec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyserve.data.manifest import Item, Manifest

CLASSES = ("blue", "green", "red")
COUNTS = {"train": 12, "valid": 6}  # pictures of each class


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Noise with a tint of its class."""
    root = tmp_path_factory.mktemp("pictures")
    source = np.random.default_rng(0)
    items = []
    for part, count in COUNTS.items():
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = source.integers(0, 120, (20, 24, 3), dtype=np.uint8)
                pixels[..., 2 - label] += 110
                path = f"{part}/{name}/{index}.png"
                Image.fromarray(pixels).save(root / path)
                items.append(Item(path, label, part))  # type: ignore[arg-type]
    return Manifest(
        dataset_id="tints",
        root=str(root),
        classes=CLASSES,
        items=tuple(items),
        bad_images=(),
        has_own_split=True,
        size_bytes=0,
        digest="d" * 64,
        create_time=0.0,
    )


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")
