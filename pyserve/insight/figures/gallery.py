"""Pictures with what the model said about them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pyserve.insight.figures.style import (
    BLUE,
    FAINT,
    INK,
    VERMILION,
    WIDTH_IN,
    drawable,
    figure,
    percent,
    short,
)
from pyserve.insight.figures.tiles import (
    BORDER_IN,
    CHARACTER_WIDTH,
    HEADER_IN,
    POINTS_PER_INCH,
    draw_tile,
    tile_canvas,
)

_MAX_COLUMNS = 8
_GAP_IN = 0.16
_EXPLANATION = (
    "what the model says and how probable it finds it; true: the data set's label and how probable that is"
)


@dataclass(frozen=True)
class Tile:
    """One picture of a gallery."""

    picture: npt.NDArray[np.uint8] | None  # [H, W, 3], or None where it cannot be shown
    label: str  # of the data set
    predicted: str
    probability: float  # of the predicted label
    label_probability: float


@figure("gallery")
def gallery(
    tiles: Sequence[Tile], *, title: str = "Predictions", explanation: str = _EXPLANATION, truth: str = "true"
) -> Figure:
    """A grid of pictures; frame, sign and words tell right from wrong, not the colour alone.

    Args:
        tiles: in reading order; none gives a figure that says so.
        explanation: what the words below the pictures mean.
        truth: the word before the data set's label.
    """
    grid = _grid(tiles)
    rows = math.ceil(len(tiles) / grid.columns)
    height_in = HEADER_IN + rows * grid.step_in + BORDER_IN if tiles else 1.2
    built, axes = tile_canvas(height_in, title, explanation if tiles else "no such pictures")
    for i, tile in enumerate(tiles):
        row, column = divmod(i, grid.columns)
        left = BORDER_IN + column * (grid.width_in + _GAP_IN)
        _draw_tile(axes, tile, grid, truth, left, HEADER_IN + row * grid.step_in)
    return built


@dataclass(frozen=True)
class _Grid:
    columns: int
    width_in: float  # of a picture's frame
    height_in: float
    type_size: float  # points

    @property
    def line_in(self) -> float:
        return 1.4 * self.type_size / POINTS_PER_INCH

    @property
    def step_in(self) -> float:
        """From one row to the next: frame, two lines, gap."""
        return self.height_in + 0.07 + 2 * self.line_in + _GAP_IN


def _grid(tiles: Sequence[Tile]) -> _Grid:
    """Frames of the pictures' usual form, in rows that are full where that is possible."""
    forms = [t.picture.shape[0] / t.picture.shape[1] for t in tiles if t.picture is not None and t.picture.size]
    form = min(max(statistics.median(forms), 0.7), 1.3) if forms else 1.0
    ideal = math.sqrt(len(tiles) * 1.1 * form)
    fewest = 3 if len(tiles) <= 9 else 4
    candidates = range(max(math.floor(ideal), fewest), max(math.ceil(ideal) + 1, fewest) + 1)
    columns = min(min(candidates, key=lambda c: (-len(tiles) % c, abs(c - ideal))), _MAX_COLUMNS)
    width_in = (WIDTH_IN - 2 * BORDER_IN - (columns - 1) * _GAP_IN) / columns
    return _Grid(columns, width_in, width_in * form, min(10.5, max(5.5, width_in * 5.2)))


def _draw_tile(axes: Axes, tile: Tile, grid: _Grid, truth: str, left: float, top: float) -> None:
    width, height, size = grid.width_in, grid.height_in, grid.type_size
    correct = tile.label == tile.predicted
    colour = BLUE if correct else VERMILION
    axes.add_patch(Rectangle((left, top), width, height, facecolor="#f4f4f4", edgecolor=FAINT, linewidth=0.8))
    draw_tile(axes, tile.picture, (left, top, width, height))
    frame = Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=2.2, zorder=3)
    frame.set_linestyle("-" if correct else (0, (4, 1.5)))
    axes.add_patch(frame)
    characters = max(int(width * POINTS_PER_INCH / (CHARACTER_WIDTH * size)) - len(f"{truth}:  99.9 %"), 4)
    says = f"{'✓' if correct else '✗'} {short(drawable(tile.predicted), characters)}  {percent(tile.probability)}"
    below = top + height + 0.07
    axes.text(left, below, says, fontsize=size, va="top", color=colour, fontweight="bold")
    if not correct:
        told = f"{truth}: {short(drawable(tile.label), characters)}  {percent(tile.label_probability)}"
        axes.text(left, below + grid.line_in, told, fontsize=size, va="top", color=INK)
