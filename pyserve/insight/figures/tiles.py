"""Grids of pictures laid out in inches, y downwards: what galleries, filters and patches share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from pyserve.errors import InvalidArgumentError
from pyserve.insight.figures.style import INK, MUTED, WIDTH_IN, drawable, new_figure

BORDER_IN = 0.15
HEADER_IN = 0.75
POINTS_PER_INCH = 72
CHARACTER_WIDTH = 0.62  # of the type size, DejaVu Sans, on average
_SMALL_PICTURE = 64  # pixels; below, single pixels are shown as squares

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.floating]


def tile_canvas(height_in: float, title: str, explanation: str) -> tuple[Figure, Axes]:
    """A figure with axes over the whole of it, in inches, headed by a title and a line in small type."""
    built = new_figure(height_in, layout=None)
    axes = built.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set_autoscale_on(False)  # imshow would move the limits
    axes.set_xlim(0, WIDTH_IN)
    axes.set_ylim(height_in, 0)
    axes.text(BORDER_IN, 0.22, drawable(title), fontsize=13, va="center", color=INK)
    axes.text(BORDER_IN, 0.52, explanation, fontsize=8.5, va="center", color=MUTED)
    return built, axes


def draw_tile(
    axes: Axes,
    picture: Pixels | None,
    frame: tuple[float, float, float, float],
    *,
    colours: Colormap | None = None,
    limits: tuple[float, float] | None = None,
    smooth: bool | None = None,
) -> None:
    """A picture as large as it fits into a frame, its form kept.

    Args:
        picture: [H, W, 3], uint8 or 0…1; [H, W] with `colours`; None says that it cannot be read.
        frame: left, top, width, height, inches.
        limits: the values that get the first and the last colour.
        smooth: whether enlarged pixels run into each other; default: only where there are many.
    """
    left, top, room_x, room_y = frame
    if picture is None:
        x, y = left + room_x / 2, top + room_y / 2
        axes.text(x, y, "not readable", ha="center", va="center", color=MUTED, fontsize=8)
        return
    if picture.ndim != (3 if colours is None else 2) or 0 in picture.shape or picture.shape[2:] not in ((3,), ()):
        raise InvalidArgumentError.field("picture", list(picture.shape), "[H, W, 3], or [H, W] with colours")
    height, width = picture.shape[:2]
    scale = min(room_x / width, room_y / height)
    x, y = left + (room_x - width * scale) / 2, top + (room_y - height * scale) / 2
    low, high = limits or (None, None)
    many = max(height, width) > _SMALL_PICTURE
    interpolation = {None: "antialiased" if many else "nearest", True: "bicubic", False: "nearest"}[smooth]
    axes.imshow(
        picture,
        extent=(x, x + width * scale, y + height * scale, y),
        interpolation=interpolation,
        aspect="auto",
        cmap=colours,
        vmin=low,
        vmax=high,
        zorder=2,
    )
