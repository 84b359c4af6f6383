"""Pictures with what the model said about them."""

from __future__ import annotations

import math
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
    columns = min(max(math.ceil(math.sqrt(len(tiles) * 1.1)), 3), _MAX_COLUMNS)
    rows = max(math.ceil(len(tiles) / columns), 1)
    side_in = (WIDTH_IN - 2 * _BORDER_IN - (columns - 1) * _GAP_IN) / columns
    size = min(10.5, max(5.5, side_in * 5.2))
    caption_in = 2 * 1.45 * size / _POINTS_PER_INCH + 0.1
    height_in = _HEADER_IN + rows * (side_in + caption_in + _GAP_IN) + _BORDER_IN if tiles else 1.6
    built = new_figure(height_in, layout=None)
    axes = _canvas(built, height_in)
    _draw_header(axes, title, bool(tiles))
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        left = _BORDER_IN + column * (side_in + _GAP_IN)
        top = _HEADER_IN + row * (side_in + caption_in + _GAP_IN)
        _draw_tile(axes, tile, left, top, side_in, size)
    return built


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
    explanation = "what the model says, with its probability; below what the data set says, and the model's probability of it"
    axes.text(_BORDER_IN, 0.52, explanation, fontsize=8.5, va="center", color=MUTED)


def _draw_tile(axes: Axes, tile: Tile, left: float, top: float, side: float, size: float) -> None:
    correct = tile.label == tile.predicted
    colour = BLUE if correct else VERMILION
    axes.add_patch(Rectangle((left, top), side, side, facecolor="#f4f4f4", edgecolor=FAINT, linewidth=0.8))
    _draw_picture(axes, tile.picture, left, top, side)
    frame = Rectangle((left, top), side, side, fill=False, edgecolor=colour, linewidth=2.2, zorder=3)
    frame.set_linestyle("-" if correct else (0, (4, 1.5)))
    axes.add_patch(frame)
    characters = int(side * _POINTS_PER_INCH / (_CHARACTER_WIDTH * size)) - len("✗  99.9 %")
    line = 1.4 * size / _POINTS_PER_INCH
    says = f"{'✓' if correct else '✗'} {short(drawable(tile.predicted), max(characters, 4))} {percent(tile.probability)}"
    axes.text(left, top + side + 0.07, says, fontsize=size, va="top", color=colour, fontweight="bold")
    if not correct:
        truth = f"is {short(drawable(tile.label), max(characters, 4))} {percent(tile.label_probability)}"
        axes.text(left, top + side + 0.07 + line, truth, fontsize=size, va="top", color=INK)


def _draw_picture(
    axes: Axes, picture: npt.NDArray[np.uint8] | None, left: float, top: float, side: float
) -> None:
    if picture is None:
        axes.text(left + side / 2, top + side / 2, "not readable", ha="center", va="center", color=MUTED, fontsize=8)
        return
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise InvalidArgumentError.field("tiles.picture", list(picture.shape), "[H, W, 3]")
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    x, y = left + (side - width * scale) / 2, top + (side - height * scale) / 2
    axes.imshow(
        picture,
        extent=(x, x + width * scale, y + height * scale, y),
        interpolation="nearest" if max(height, width) < _SMALL_PICTURE else "antialiased",
        aspect="auto",
        zorder=2,
    )
    # imshow moves the limits
    axes.set_xlim(0, WIDTH_IN)
    axes.set_ylim(axes.figure.get_size_inches()[1], 0)  # type: ignore[union-attr]
