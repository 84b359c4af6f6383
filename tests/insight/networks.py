"""Small networks with planted weights, and datasets that they look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pyserve.data.folder import ScanOptions, scan
from pyserve.data.manifest import Manifest
from pyserve.inference.description import Preprocessing
from pyserve.inference.probe import Probe
from tests.models.support import model_with_statistics

SIDE = 16
UPRIGHT = torch.tensor([[-1.0, 2.0, -1.0]] * 3) / 3  # a bright column on dark
LYING = UPRIGHT.T


def preprocessing(side: int = SIDE) -> Preprocessing:
    """Pixels become −1…1."""
    return Preprocessing(image_size=side, presize=side, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class Planted(nn.Module):
    """Feature map 0 sees bright columns, 1 bright rows, 2 the colour red, 3 nothing at all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(SIDE)
        self.fc = nn.Linear(4, 3)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.bias.copy_(torch.tensor([-0.5, -0.5, -0.5, -1.0]))
            self.conv.weight[0] = UPRIGHT / 3
            self.conv.weight[1] = LYING / 3
            self.conv.weight[2, :, 1, 1] = torch.tensor([1.0, -0.5, -0.5])
            self.fc.weight.copy_(4 * torch.eye(3, 4))
            self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.pool(self.relu(self.conv(x))).flatten(1))
        return y


def planted() -> Probe:
    return Probe(Planted(), preprocessing())


def registered(name: str, side: int = 32) -> Probe:
    """A registered network with random weights."""
    return Probe(model_with_statistics(name), preprocessing(side))


def stripe(
    column: int | None = None, row: int | None = None, colour: Sequence[int] = (255, 255, 255)
) -> np.ndarray:
    """Black, with a stripe of one pixel, uint8 [16, 16, 3]."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    if column is not None:
        pixels[:, column] = colour
    if row is not None:
        pixels[row] = colour
    return pixels


def batch(*pictures: np.ndarray) -> Tensor:
    """As the probes take them."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def dataset(folder: Path, pictures: dict[str, np.ndarray]) -> Manifest:
    """Pictures by path, "train/class/name.png", as a dataset."""
    for path, pixels in pictures.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)
    return scan("planted", folder, ScanOptions(), max_pixels=10**6, max_files=10**4)
