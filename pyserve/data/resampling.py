"""Resampling pictures with PyTorch, for those who have loaded it anyway."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from pyserve.data.images import Pixels


def resize_with_torch(square: Image.Image, side: int) -> Pixels:
    """`images.resize_with_pillow` within a level of 255, with vector instructions: half of the time.

    Args:
        square: RGB.
        side: wanted, pixels.

    Returns:
        [side, side, 3].
    """
    rows = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]
    resized = functional.interpolate(rows, (side, side), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()
