"""The first layer's filters as pictures (after Zeiler & Fergus, arXiv 1311.2901, figure 5)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from pyserve.errors import InvalidArgumentError
from pyserve.insight.figures.style import WIDTH_IN, figure
from pyserve.insight.figures.tiles import BORDER_IN, HEADER_IN, draw_tile, tile_canvas

_GAP = 0.09  # between tiles, as a fraction of one
_WIDTH_TO_HEIGHT = 2.2
_DEAD = 1e-3  # a filter this much weaker than the strongest is shown as it is, not as amplified noise


@figure("filters")
def filters(weights: npt.NDArray[np.floating], *, title: str = "First-layer filters") -> Figure:
    """Every filter as one tile, in order: mid grey is zero, brighter positive, each scaled to its largest weight.

    Args:
        weights: [K, 3, R, S] (red, green, blue) or [K, 1, R, S] (grey), K ≥ 1.

    Raises:
        InvalidArgumentError: another shape.
    """
    if weights.ndim != 4 or weights.shape[1] not in (1, 3) or 0 in weights.shape:
        raise InvalidArgumentError.field("weights", list(weights.shape), "[K, 3, R, S] or [K, 1, R, S], K ≥ 1")
    count, _, height, width = weights.shape
    columns = _columns(count, height / width)
    rows = math.ceil(count / columns)
    tile_in = min((WIDTH_IN - 2 * BORDER_IN) / (columns + (columns - 1) * _GAP), 1.6)
    step_in = tile_in * (1 + _GAP)
    height_in = HEADER_IN + rows * step_in * height / width + BORDER_IN
    explanation = (
        "mid grey is 0, brighter is positive, darker negative; each filter scaled to its own largest weight"
    )
    built, axes = tile_canvas(height_in, f"{title}: {count} of {height} × {width}", explanation)
    for k, tile in enumerate(filter_tiles(weights)):
        row, column = divmod(k, columns)
        left, top = BORDER_IN + column * step_in, HEADER_IN + row * step_in * height / width
        draw_tile(axes, tile, (left, top, tile_in, tile_in * height / width), smooth=False)
    return built


def _columns(count: int, height_to_width: float) -> int:
    """A wide grid, its last row full where a number nearby divides."""
    ideal = round(math.sqrt(count * _WIDTH_TO_HEIGHT * height_to_width))
    candidates = range(max(math.ceil(0.6 * ideal), 1), max(math.floor(1.5 * ideal), 1) + 1)
    return min(
        (c for c in candidates if c <= count), key=lambda c: (-count % c, abs(c - ideal), -c), default=count
    )


def filter_tiles(weights: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """[K, C, R, S] as pictures [K, R, S, 3] in 0…1, 0.5 for a weight of zero."""
    finite = np.nan_to_num(weights.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    largest = np.abs(finite).max(axis=(1, 2, 3), keepdims=True)
    scale = np.maximum(largest, _DEAD * largest.max())
    scaled = 0.5 + 0.5 * finite / np.where(scale > 0, scale, 1.0)
    tiles = scaled.transpose(0, 2, 3, 1)
    result: npt.NDArray[np.float64] = np.repeat(tiles, 3, axis=3) if tiles.shape[3] == 1 else tiles
    return result
