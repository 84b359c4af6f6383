"""Deconvnet projections beside the parts of pictures that they come from: top patches, and their evolution.

After Zeiler & Fergus 2013, arXiv 1311.2901, figures 2 and 4.
"""

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
from pyserve.insight.figures.style import INK, MUTED, WIDTH_IN, drawable, figure
from pyserve.insight.figures.tiles import BORDER_IN, HEADER_IN, draw_tile, tile_canvas

_LABEL_IN = 0.27
_BLOCK_GAP_IN = 0.3
_PAIR_GAP_IN = 0.08  # between the projections and the pictures of a block
_MOST_BESIDE = 5  # epochs whose projections and pictures stand side by side
_ENERGY = 0.9  # of a projection, that a cut-out must hold
_LEAST_SIDE = 40  # pixels of a cut-out
_FINE_SIDE = 16  # pixels; up to here single pixels are shown
_CLIPPED = 99.5  # per cent of a projection's values that keep their differences


@dataclass(frozen=True)
class PatchPair:
    """A part of a picture, [h, w, 3], and the projection of what a feature map found there, [3, h, w]."""

    pixels: npt.NDArray[np.uint8]
    projection: npt.NDArray[np.floating]


@figure("top_patches")
def top_patches(
    channels: Sequence[tuple[str, Sequence[PatchPair]]],
    *,
    rule: str = "deconvnet",
    title: str = "What feature maps look for",
) -> Figure:
    """For each feature map a grid of projections, and beside it the pictures in the same order.

    Args:
        channels: name and pairs of each, strongest first; none for a feature map that is never active.
        rule: how the projections were made, in a word.

    Raises:
        InvalidArgumentError: no feature map, or pairs of other shapes.
    """
    if not channels:
        raise InvalidArgumentError.field("channels", "no feature map", "at least one")
    most = max(len(pairs) for _, pairs in channels)
    across = max(math.ceil(math.sqrt(most)), 1)
    columns = min(len(channels), 2 if len(channels) <= 8 else 3)
    width_in = (WIDTH_IN - 2 * BORDER_IN - (columns - 1) * _BLOCK_GAP_IN) / columns
    grid_in = (width_in - _PAIR_GAP_IN) / 2
    step_in = grid_in * math.ceil(max(most, 1) / across) / across + _LABEL_IN + 0.12
    height_in = HEADER_IN + math.ceil(len(channels) / columns) * step_in + BORDER_IN
    explanation = (
        f"left: what excited the feature map, projected back to pixels ({rule}; grey is nothing); "
        "right: where that is in the pictures"
    )
    built, axes = tile_canvas(height_in, title, explanation)
    for i, (name, pairs) in enumerate(channels):
        row, column = divmod(i, columns)
        left = BORDER_IN + column * (width_in + _BLOCK_GAP_IN)
        top = HEADER_IN + row * step_in
        axes.text(left, top + _LABEL_IN / 2, drawable(name), fontsize=9, va="center", color=INK)
        _draw_block(axes, pairs, (left, top + _LABEL_IN), grid_in, across)
    return built


@figure("evolution")
def evolution(
    rows: Sequence[tuple[str, Sequence[PatchPair | None]]],
    epochs: Sequence[int],
    *,
    rule: str = "deconvnet",
    title: str = "How features come about",
) -> Figure:
    """For each feature map the projection of its strongest activation after some epochs, above the picture's part.

    Args:
        rows: name of each feature map, and a pair for each epoch; None where it was not active.
        epochs: counted from 1.
        rule: how the projections were made, in a word.

    Raises:
        InvalidArgumentError: no feature map, or not as many pairs as epochs.
    """
    if not rows or not epochs or any(len(pairs) != len(epochs) for _, pairs in rows):
        raise InvalidArgumentError.field(
            "rows", f"{len(rows)} feature maps", f"some, each with {len(epochs)} pairs"
        )
    name_in, room_in = 1.15, (WIDTH_IN - 2 * BORDER_IN - 1.15) / len(epochs)
    beside = len(epochs) <= _MOST_BESIDE
    side_in = min(room_in / 2 - _PAIR_GAP_IN, 1.3) if beside else room_in
    step_in = (1 if beside else 2) * side_in + 0.14
    height_in = HEADER_IN + _LABEL_IN + len(rows) * step_in + BORDER_IN
    explanation = (
        f"{'left' if beside else 'above'}: the strongest activation, projected back to pixels ({rule}); "
        f"{'right' if beside else 'below'}: where in which picture that is"
    )
    built, axes = tile_canvas(height_in, title, explanation)
    for column, epoch in enumerate(epochs):
        left = BORDER_IN + name_in + column * room_in
        axes.text(left, HEADER_IN + _LABEL_IN / 2, f"epoch {epoch}", fontsize=9, va="center", color=INK)
    for row, (name, pairs) in enumerate(rows):
        top = HEADER_IN + _LABEL_IN + row * step_in
        axes.text(BORDER_IN, top + step_in / 2, drawable(name), fontsize=9, va="center", color=INK)
        for column, pair in enumerate(pairs):
            left = BORDER_IN + name_in + column * room_in
            second = (left + side_in, top) if beside else (left, top + side_in)
            _draw_pair(axes, pair, (left, top), second, side_in)
    return built


def _draw_block(
    axes: Axes, pairs: Sequence[PatchPair], corner: tuple[float, float], grid_in: float, across: int
) -> None:
    left, top = corner
    if not pairs:
        axes.text(left, top + 0.15, "never active", fontsize=8.5, va="center", color=MUTED)
        return
    side_in = grid_in / across
    for i, pair in enumerate(pairs):
        row, column = divmod(i, across)
        place = (left + column * side_in, top + row * side_in)
        _draw_pair(axes, pair, place, (place[0] + grid_in + _PAIR_GAP_IN, place[1]), side_in)


def _draw_pair(
    axes: Axes, pair: PatchPair | None, first: tuple[float, float], second: tuple[float, float], side_in: float
) -> None:
    """The projection at the first place, the picture at the second; nothing where there is none."""
    if pair is None:
        return
    cut = cut_out(pair)
    smooth = max(cut.pixels.shape) > _FINE_SIDE
    for picture, place in ((projection_colours(cut.projection), first), (cut.pixels, second)):
        draw_tile(axes, picture, (*place, side_in, side_in), smooth=smooth)
        axes.add_patch(Rectangle(place, side_in, side_in, fill=False, edgecolor="white", linewidth=1.2, zorder=3))


def projection_colours(projection: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """[3, h, w] as a picture [h, w, 3] in 0…1: mid grey is zero, each colour up and down from there.

    Larger ones are smoothed over three pixels (1, 2, 1): strided convolutions leave a chequerboard.
    """
    values = np.nan_to_num(projection.astype(np.float64), posinf=0.0, neginf=0.0)
    if max(values.shape[1:]) > _FINE_SIDE:
        values = _smoothed(values, axis=1)
        values = _smoothed(values, axis=2)
    largest = float(np.percentile(np.abs(values), _CLIPPED)) or float(np.abs(values).max())
    scaled = values / largest if largest > 0 else values
    result: npt.NDArray[np.float64] = np.clip(0.5 + 0.5 * scaled, 0, 1).transpose(1, 2, 0)
    return result


def _smoothed(values: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    widths = [(1, 1) if i == axis else (0, 0) for i in range(3)]
    padded = np.pad(values, widths, mode="edge")
    before, after = (np.take(padded, range(i, i + values.shape[axis]), axis=axis) for i in (0, 2))
    return (before + 2 * values + after) / 4


def cut_out(pair: PatchPair) -> PatchPair:
    """The square that holds nearly all of the projection: receptive fields of deep layers are mostly empty."""
    if pair.pixels.ndim != 3 or pair.projection.shape != (3, *pair.pixels.shape[:2]) or 0 in pair.pixels.shape:
        raise InvalidArgumentError.field(
            "pairs",
            f"pixels {list(pair.pixels.shape)} and projection {list(pair.projection.shape)}",
            "[h, w, 3] and [3, h, w]",
        )
    height, width = pair.pixels.shape[:2]
    energy = np.square(np.nan_to_num(pair.projection.astype(np.float64))).sum(axis=0)
    rows, columns = (_span(energy.sum(axis=axis)) for axis in (1, 0))
    side = min(max(rows[1] - rows[0], columns[1] - columns[0], _LEAST_SIDE), height, width)
    top, left = (_centred(span, side, length) for span, length in ((rows, height), (columns, width)))
    rows_kept, columns_kept = slice(top, top + side), slice(left, left + side)
    return PatchPair(pair.pixels[rows_kept, columns_kept], pair.projection[:, rows_kept, columns_kept])


def _span(energy: npt.NDArray[np.float64]) -> tuple[int, int]:
    """First and last place (excluded) of the middle that holds nearly all."""
    share = energy.cumsum() / energy.sum() if energy.sum() > 0 else np.linspace(0, 1, len(energy))
    rest = (1 - _ENERGY) / 2
    return int(np.searchsorted(share, rest)), min(int(np.searchsorted(share, 1 - rest)) + 1, len(energy))


def _centred(span: tuple[int, int], side: int, length: int) -> int:
    return min(max((span[0] + span[1] - side) // 2, 0), length - side)
