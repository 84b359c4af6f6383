"""A small dataset for real workers: noise tinted with the colour of its class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pyserve.data.manifest import Item, Manifest

CLASSES = ("blue", "green", "red")


def add_dataset(data_dir: Path, dataset_id: str = "tints", per_class: int = 12) -> Manifest:
    """Put a dataset into a data folder."""
    folder = data_dir / "datasets" / dataset_id
    source = np.random.default_rng(0)
    items = []
    for label, name in enumerate(CLASSES):
        (folder / "images" / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = source.integers(0, 120, (16, 16, 3), dtype=np.uint8)
            pixels[..., 2 - label] += 110
            path = f"{name}/{index}.png"
            Image.fromarray(pixels).save(folder / "images" / path)
            items.append(Item(path, label, "valid" if index % 3 == 0 else "train"))
    manifest = Manifest(
        dataset_id=dataset_id,
        root=str(folder / "images"),
        classes=CLASSES,
        items=tuple(items),
        bad_images=(),
        has_own_split=False,
        size_bytes=0,
        digest="d" * 64,
        create_time=0.0,
    )
    manifest.save(folder / "manifest.json")
    return manifest
