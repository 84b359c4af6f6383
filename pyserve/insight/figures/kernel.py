"""A small kernel, a picture, and what it makes of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyserve.errors import InvalidArgumentError
from pyserve.insight.figures.filters import filter_tiles
from pyserve.insight.figures.style import INK, WIDTH_IN, diverging_colours, drawable, figure, new_figure

_HEADER_IN, _TITLE_IN = 0.45, 0.35
_GAP_IN, _BORDER_IN = 0.25, 0.15
_KERNEL_IN = 2.0

Values = npt.NDArray[np.floating]


@figure("kernel")
def kernel(picture: Values, weights: Values, shown: Values, *, name: str = "kernel", white: float = 1.0) -> Figure:
    """The picture, the kernel with its numbers, and the response: black is no activation, white is much.

    Args:
        picture: what the kernel saw, [H, W] grey or [H, W, 3], 0…1.
        weights: [R, S], or [3, R, S] of a learned filter, which is shown in its colours.
        shown: the response, [H, W] in 0…1.
        white: the response that is shown white.

    Raises:
        InvalidArgumentError: shapes that do not fit.
    """
    if picture.shape[:2] != shown.shape or 0 in shown.shape or weights.ndim not in (2, 3):
        got = f"picture {list(picture.shape)}, weights {list(weights.shape)}, response {list(shown.shape)}"
        raise InvalidArgumentError.field("kernel", got, "[H, W] or [H, W, 3], [R, S] or [3, R, S], and [H, W]")
    height, width = shown.shape
    room_in = (WIDTH_IN - 2 * _BORDER_IN - 2 * _GAP_IN - _KERNEL_IN) / 2
    scale = min(room_in / width, 6.0 / height)
    tall_in = max(height * scale, _KERNEL_IN)
    height_in = _HEADER_IN + _TITLE_IN + tall_in + _BORDER_IN
    built = new_figure(height_in, layout=None)
    built.text(_BORDER_IN / WIDTH_IN, 1 - 0.28 / height_in, drawable(f"Image kernel: {name}"), fontsize=13)

    def place(left_in: float, width_in: float, tall: float, title: str) -> Axes:
        bottom = _BORDER_IN + (tall_in - tall) / 2
        box = (left_in / WIDTH_IN, bottom / height_in, width_in / WIDTH_IN, tall / height_in)
        axes = built.add_axes(box)
        axes.axis("off")
        axes.set_title(title, fontsize=10, color=INK)
        return axes

    whole = width * scale, height * scale
    grey = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0}
    axes = place(_BORDER_IN + (room_in - whole[0]) / 2, *whole, "the picture")
    axes.imshow(picture, aspect="auto", **grey)  # type: ignore[arg-type]  # of three colours they are ignored
    _draw_weights(place(_BORDER_IN + room_in + _GAP_IN, _KERNEL_IN, _KERNEL_IN, "the kernel"), weights)
    title = "what it finds: black is 0, white is " + (f"{white:.3g} or more" if white != 1 else "1 or more")
    left = _BORDER_IN + room_in + 2 * _GAP_IN + _KERNEL_IN
    place(left + (room_in - whole[0]) / 2, *whole, title).imshow(shown, aspect="auto", **grey)  # type: ignore[arg-type]
    return built


def _draw_weights(axes: Axes, weights: Values) -> None:
    if weights.ndim == 3:
        axes.imshow(filter_tiles(weights[None])[0], interpolation="nearest")
        return
    largest = float(np.abs(weights).max()) or 1.0
    axes.imshow(weights, cmap=diverging_colours(), vmin=-largest, vmax=largest, interpolation="nearest")
    rows, columns = weights.shape
    for edge in range(max(rows, columns) + 1):
        axes.axhline(edge - 0.5, color="white", linewidth=1.5)
        axes.axvline(edge - 0.5, color="white", linewidth=1.5)
    for (i, j), value in np.ndenumerate(weights):
        colour = "white" if abs(value) > 0.7 * largest else INK
        text = f"{value:.3g}".replace("-", "−")
        axes.text(j, i, text, ha="center", va="center", fontsize=min(13, 40 / rows), color=colour)
