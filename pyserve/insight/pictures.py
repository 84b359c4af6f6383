"""Pictures of a data set for a gallery: decoded, and made small."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pyserve.data.images import decode_image
from pyserve.errors import DataError

Picture = npt.NDArray[np.uint8]


def load_pictures(root: str, paths: Sequence[str], *, max_pixels: int, side: int = 256) -> list[Picture | None]:
    """uint8 [H, W, 3] each, the longer side at most `side` pixels; None for one that cannot be read any more."""
    return [_load(Path(root, path), max_pixels, side) for path in paths]


def _load(path: Path, max_pixels: int, side: int) -> Picture | None:
    try:
        image = decode_image(path, max_pixels=max_pixels)
    except (DataError, OSError):
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)
