"""Pairs of pictures that show the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pyserve.insight.figures.style import FAINT, INK, MUTED, VERMILION, WIDTH_IN, drawable, figure, short
from pyserve.insight.figures.tiles import (
    BORDER_IN,
    CHARACTER_WIDTH,
    HEADER_IN,
    POINTS_PER_INCH,
    draw_tile,
    tile_canvas,
)

_COLUMNS = 3
_GAP_IN, _INNER_IN = 0.3, 0.06
_TYPE_SIZE = 8.5
_LINE_IN = 1.4 * _TYPE_SIZE / POINTS_PER_INCH


@dataclass(frozen=True)
class Pair:
    """Two pictures, [H, W, 3] or None where one cannot be shown, and what is told of them."""

    first: npt.NDArray[np.uint8] | None
    second: npt.NDArray[np.uint8] | None
    first_name: str
    second_name: str
    note: str = ""
    warns: bool = False  # the note is a warning: other labels, or both parts of the dataset


@figure("duplicates")
def duplicates(pairs: Sequence[Pair], *, title: str = "Pictures that show the same") -> Figure:
    """Pairs side by side, with the names of both and a note.

    Args:
        pairs: in reading order; none gives a figure that says so.
    """
    width_in = (WIDTH_IN - 2 * BORDER_IN - (_COLUMNS - 1) * _GAP_IN) / _COLUMNS
    step_in = width_in / 2 + 3 * _LINE_IN + _GAP_IN
    rows = math.ceil(len(pairs) / _COLUMNS)
    height_in = HEADER_IN + rows * step_in + BORDER_IN if pairs else 1.2
    explanation = "each pair is one picture twice: recompressed, resized, cropped, mirrored or recoloured"
    built, axes = tile_canvas(height_in, title, explanation if pairs else "no such pictures")
    for i, pair in enumerate(pairs):
        row, column = divmod(i, _COLUMNS)
        left, top = BORDER_IN + column * (width_in + _GAP_IN), HEADER_IN + row * step_in
        _draw_pair(axes, pair, left, top, (width_in - _INNER_IN) / 2)
    return built


def _draw_pair(axes: Axes, pair: Pair, left: float, top: float, side_in: float) -> None:
    for picture, begin in ((pair.first, left), (pair.second, left + side_in + _INNER_IN)):
        frame = Rectangle((begin, top), side_in, side_in, facecolor="#f4f4f4", edgecolor=FAINT, linewidth=0.8)
        axes.add_patch(frame)
        draw_tile(axes, picture, (begin, top, side_in, side_in))
    characters = int((2 * side_in + _INNER_IN) * POINTS_PER_INCH / (CHARACTER_WIDTH * _TYPE_SIZE))
    lines = [(pair.first_name, INK), (pair.second_name, INK)]
    if pair.note:
        lines.append((pair.note, VERMILION if pair.warns else MUTED))
    for i, (text, colour) in enumerate(lines):
        below = top + side_in + 0.06 + i * _LINE_IN
        axes.text(left, below, short(drawable(text), characters), fontsize=_TYPE_SIZE, va="top", color=colour)
