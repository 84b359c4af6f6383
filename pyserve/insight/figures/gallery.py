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

from pyserve.errors import InvalidArgumentError
from pyserve.insight.figures.style import (
    BLUE,
    FAINT,
    INK,
    MUTED,
    VERMILION,
    WIDTH_IN,
    drawable,
    figure,
    new_figure,
    percent,
    short,
)

_POINTS_PER_INCH = 72
_CHARACTER_WIDTH = 0.62  # of the type size, DejaVu Sans, on average
_MAX_COLUMNS = 8
_SMALL_PICTURE = 64  # pixels; below, single pixels are shown as squares
_BORDER_IN, _GAP_IN, _HEADER_IN = 0.15, 0.16, 0.75


@dataclass(frozen=True)
class Tile:
    """One picture of a gallery."""

    picture: npt.NDArray[np.uint8] | None  # [H, W, 3], or None where it cannot be shown
    label: str  # of the data set
    predicted: str
    probability: float  # of the predicted label
    label_probability: float


@figure("gallery")
def gallery(tiles: Sequence[Tile], *, title: str = "Predictions") -> Figure:
    """A grid of pictures; frame, sign and words tell right from wrong, not the colour alone.

    Args:
        tiles: in reading order; none gives a figure that says so.
    """
    grid = _grid(tiles)
    rows = math.ceil(len(tiles) / grid.columns)
    height_in = _HEADER_IN + rows * grid.step_in + _BORDER_IN if tiles else 1.2
    built = new_figure(height_in, layout=None)
    axes = _canvas(built, height_in)
    _draw_header(axes, title, bool(tiles))
    for i, tile in enumerate(tiles):
        row, column = divmod(i, grid.columns)
        left = _BORDER_IN + column * (grid.width_in + _GAP_IN)
        _draw_tile(axes, tile, grid, left, _HEADER_IN + row * grid.step_in)
    axes.set_xlim(0, WIDTH_IN)  # imshow moves the limits
    axes.set_ylim(height_in, 0)
    return built


@dataclass(frozen=True)
class _Grid:
    columns: int
    width_in: float  # of a picture's frame
    height_in: float
    type_size: float  # points

    @property
    def line_in(self) -> float:
        return 1.4 * self.type_size / _POINTS_PER_INCH

    @property
    def step_in(self) -> float:
        """From one row to the next: frame, two lines, gap."""
        return self.height_in + 0.07 + 2 * self.line_in + _GAP_IN


def _grid(tiles: Sequence[Tile]) -> _Grid:
    """Frames of the pictures' usual form, in rows that are full where that is possible."""
    forms = [t.picture.shape[0] / t.picture.shape[1] for t in tiles if t.picture is not None and t.picture.size]
    form = min(max(statistics.median(forms), 0.7), 1.3) if forms else 1.0
    ideal = math.sqrt(len(tiles) * 1.1 * form)
    candidates = range(max(math.floor(ideal), 3), max(math.ceil(ideal) + 1, 3) + 1)
    columns = min(min(candidates, key=lambda c: (-len(tiles) % c, abs(c - ideal))), _MAX_COLUMNS)
    width_in = (WIDTH_IN - 2 * _BORDER_IN - (columns - 1) * _GAP_IN) / columns
    return _Grid(columns, width_in, width_in * form, min(10.5, max(5.5, width_in * 5.2)))


def _canvas(built: Figure, height_in: float) -> Axes:
    """Axes over the whole figure, in inches, y downwards."""
    axes = built.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH_IN)
    axes.set_ylim(height_in, 0)
    axes.axis("off")
    return axes


def _draw_header(axes: Axes, title: str, any_tiles: bool) -> None:
    axes.text(_BORDER_IN, 0.22, drawable(title), fontsize=13, va="center")
    if not any_tiles:
        axes.text(_BORDER_IN, 0.8, "no such pictures", fontsize=11, va="center", color=MUTED)
        return
    explanation = (
        "what the model says and how probable it finds it; true: the data set's label and how probable that is"
    )
    axes.text(_BORDER_IN, 0.52, explanation, fontsize=8.5, va="center", color=MUTED)


def _draw_tile(axes: Axes, tile: Tile, grid: _Grid, left: float, top: float) -> None:
    width, height, size = grid.width_in, grid.height_in, grid.type_size
    correct = tile.label == tile.predicted
    colour = BLUE if correct else VERMILION
    axes.add_patch(Rectangle((left, top), width, height, facecolor="#f4f4f4", edgecolor=FAINT, linewidth=0.8))
    _draw_picture(axes, tile.picture, (left, top, width, height))
    frame = Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=2.2, zorder=3)
    frame.set_linestyle("-" if correct else (0, (4, 1.5)))
    axes.add_patch(frame)
    characters = max(int(width * _POINTS_PER_INCH / (_CHARACTER_WIDTH * size)) - len("true:  99.9 %"), 4)
    says = f"{'✓' if correct else '✗'} {short(drawable(tile.predicted), characters)}  {percent(tile.probability)}"
    below = top + height + 0.07
    axes.text(left, below, says, fontsize=size, va="top", color=colour, fontweight="bold")
    if not correct:
        truth = f"true: {short(drawable(tile.label), characters)}  {percent(tile.label_probability)}"
        axes.text(left, below + grid.line_in, truth, fontsize=size, va="top", color=INK)


def _draw_picture(
    axes: Axes, picture: npt.NDArray[np.uint8] | None, frame: tuple[float, float, float, float]
) -> None:
    """As large as it fits into the frame (left, top, width, height), its form kept."""
    left, top, room_x, room_y = frame
    if picture is None:
        x, y = left + room_x / 2, top + room_y / 2
        axes.text(x, y, "not readable", ha="center", va="center", color=MUTED, fontsize=8)
        return
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise InvalidArgumentError.field("tiles.picture", list(picture.shape), "[H, W, 3]")
    height, width = picture.shape[:2]
    scale = min(room_x / width, room_y / height)
    x, y = left + (room_x - width * scale) / 2, top + (room_y - height * scale) / 2
    axes.imshow(
        picture,
        extent=(x, x + width * scale, y + height * scale, y),
        interpolation="nearest" if max(height, width) < _SMALL_PICTURE else "antialiased",
        aspect="auto",
        zorder=2,
    )
