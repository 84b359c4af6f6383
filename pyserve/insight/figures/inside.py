"""What a network sees in one picture: feature maps, Grad-CAM, occlusion, deconvnet projection."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import PercentFormatter

from pyserve.errors import InvalidArgumentError
from pyserve.insight.figures.patches import projection_colours
from pyserve.insight.figures.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    VERMILION,
    WIDTH_IN,
    diverging_colours,
    drawable,
    figure,
    new_figure,
    percent,
    short,
)
from pyserve.insight.figures.tiles import BORDER_IN, HEADER_IN, draw_tile, tile_canvas

Pixels = npt.NDArray[np.floating] | npt.NDArray[np.uint8]
Values = npt.NDArray[np.floating]

_CLASS_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, "#56B4E9", "#F0E442", "#999999")
_OVERLAY = 0.7  # opacity of a map on a picture, where it is strongest
_GAP = 0.08  # between tiles, as a fraction of one
_LABEL_IN = 0.2


@figure("feature_maps")
def feature_maps(maps: Values, channels: Sequence[int], picture: Pixels, *, title: str = "Feature maps") -> Figure:
    """The picture, and each feature map as one tile; every map is scaled to its own largest value.

    Args:
        maps: [K, H, W], K ≥ 1.
        channels: K numbers.
        picture: as the network sees it, [S, S, 3].

    Raises:
        InvalidArgumentError: shapes that do not fit.
    """
    if maps.ndim != 3 or 0 in maps.shape or len(channels) != len(maps):
        raise InvalidArgumentError.field(
            "maps", list(maps.shape), f"[{len(channels)}, H, W], one for each channel"
        )
    signed = bool(maps.min() < 0)
    colours: Colormap = diverging_colours() if signed else mpl.colormaps["inferno"]
    columns = min(max(math.ceil(math.sqrt(1.6 * (len(maps) + 1))), 4), 12)
    tile_in = (WIDTH_IN - 2 * BORDER_IN) / (columns + (columns - 1) * _GAP)
    step_in = tile_in * (1 + _GAP)
    rows = math.ceil((len(maps) + 1) / columns)
    height_in = HEADER_IN + rows * (step_in + _LABEL_IN) + BORDER_IN
    scale = "blue is negative, white is 0, red positive" if signed else "black is 0, light is strong"
    built, axes = tile_canvas(height_in, title, f"{scale}; each map scaled to its own largest value")
    names = ["the picture", *(str(channel) for channel in channels)]
    for i, name in enumerate(names):
        row, column = divmod(i, columns)
        left, top = BORDER_IN + column * step_in, HEADER_IN + row * (step_in + _LABEL_IN)
        frame = (left, top, tile_in, tile_in)
        if i == 0:
            draw_tile(axes, picture, frame)
        else:
            values = np.nan_to_num(maps[i - 1])
            largest = float(np.abs(values).max()) or 1.0
            limits = (-largest, largest) if signed else (0.0, largest)
            draw_tile(axes, values, frame, colours=colours, limits=limits)
        axes.text(left, top + tile_in + _LABEL_IN / 2, name, fontsize=8, va="center", color=INK)
    return built


@figure("grad_cam")
def grad_cam(
    cam: Values, picture: Pixels, label: str, probability: float, *, layer: str = "", title: str = "Grad-CAM"
) -> Figure:
    """The picture, and over it where the layer holds what speaks for the class.

    Args:
        cam: [H, W] in 0…1.
        picture: as the network sees it, [S, S, 3].
        label: the class.
        probability: of it, 0…1.
    """
    built = new_figure(4.9)
    first, second = built.subplots(1, 2)
    _show(first, picture, "the picture")
    _show(second, _faded(picture), f"what speaks for {short(drawable(label), 20)}")
    image = _overlay(second, cam, picture.shape[0])
    bar = built.colorbar(image, ax=second, shrink=0.85, pad=0.02)
    bar.set_label(f"evidence in {layer or 'the layer'}, of the largest", fontsize=9)
    bar.outline.set_visible(False)
    heading = f"{title}: {short(drawable(label), 30)}, {percent(probability)}"
    built.suptitle(heading, x=0.01, ha="left", fontsize=13)
    return built


@figure("occlusion")
def occlusion(
    probability: Values,
    activation: Values,
    likeliest: npt.NDArray[np.integer],
    labels: Sequence[str],
    picture: Pixels,
    label: str,
    *,
    size: int,
    layer: str = "",
    title: str = "Occlusion",
) -> Figure:
    """What becomes of the answer where a grey square hides a part of the picture (Zeiler & Fergus, figure 7).

    Args:
        probability, activation: [P, Q], of the class and of the feature map, with the square on each tile.
        likeliest: [P, Q], index of the likeliest class.
        labels: all classes.
        picture: as the network sees it, [S, S, 3].
        label: the class.
        size: side of the square, pixels.
    """
    built = new_figure(8.6, 8.4)
    panels = built.subplots(2, 2).ravel()
    side = picture.shape[0]
    _show(panels[0], picture, f"the picture, and the square of {size} pixels")
    corner = (side - size) / 2
    panels[0].add_patch(Rectangle((corner, corner), size, size, facecolor="#7f7f7f", edgecolor="white"))
    for axes, values, name in (
        (panels[1], probability, f"probability of {short(drawable(label), 20)}"),
        (panels[2], activation, f"strongest feature map of {layer or 'the layer'}"),
    ):
        image = axes.imshow(
            values, cmap="viridis", extent=(0, side, side, 0), interpolation="nearest", vmin=0, vmax=_top(values)
        )
        _undecorated(axes, name)
        bar = built.colorbar(image, ax=axes, shrink=0.85, pad=0.02)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        bar.outline.set_visible(False)
    _draw_likeliest(panels[3], likeliest, labels, side)
    heading = f"{title}: what {short(drawable(label), 30)} hangs on; each tile has the square at its centre"
    built.suptitle(heading, x=0.01, ha="left", fontsize=13)
    return built


@figure("deconvnet")
def deconvnet(
    projection: Values,
    picture: Pixels,
    *,
    layer: str,
    channel: int,
    rule: str = "deconvnet",
    box: tuple[int, int, int, int] | None = None,
    title: str = "Deconvnet",
) -> Figure:
    """The picture, and what in it a feature map's strongest activation comes from.

    Args:
        projection: [3, S, S].
        picture: as the network sees it, [S, S, 3].
        rule: how the projection was made.
        box: top, left, bottom, right of what the activation's place sees.
    """
    built = new_figure(5.1)
    first, second = built.subplots(1, 2)
    _show(first, picture, "the picture")
    _show(second, projection_colours(projection), f"projected back to pixels ({rule}; grey is nothing)")
    if box is not None:
        top, left, bottom, right = box
        for axes, colour in ((first, "white"), (second, INK)):
            frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.5)
            axes.add_patch(frame)
    heading = f"{title}: strongest place of feature map {channel} of {layer}"
    built.suptitle(heading, x=0.01, ha="left", fontsize=13)
    return built


def _show(axes: Axes, picture: Pixels, name: str) -> None:
    side = picture.shape[0]
    smooth = "nearest" if side <= 64 else "antialiased"
    axes.imshow(picture, extent=(0, picture.shape[1], side, 0), interpolation=smooth)
    _undecorated(axes, name)


def _undecorated(axes: Axes, name: str) -> None:
    axes.set_title(name, fontsize=10)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _faded(picture: Pixels) -> npt.NDArray[np.float64]:
    """Grey and paler, so that colours on it can be told."""
    values = picture.astype(np.float64) / (255 if picture.dtype == np.uint8 else 1)
    grey = values @ np.array([0.299, 0.587, 0.114])
    faded: npt.NDArray[np.float64] = np.repeat((0.25 + 0.7 * grey)[:, :, None], 3, axis=2)
    return faded


def _overlay(axes: Axes, cam: Values, side: int) -> mpl.image.AxesImage:
    """A map over a picture: clear where it is zero."""
    base = mpl.colormaps["inferno"](np.linspace(0.15, 1, 256))
    base[:, 3] = _OVERLAY * np.linspace(0, 1, 256) ** 0.7
    image = axes.imshow(
        np.nan_to_num(cam),
        cmap=ListedColormap(base),
        vmin=0,
        vmax=1,
        extent=(0, side, side, 0),
        interpolation="bilinear",
    )
    axes.set_xlim(0, side)
    axes.set_ylim(side, 0)
    return image


def _top(values: Values) -> float:
    return max(float(np.nan_to_num(values).max()), 1e-6)


def _draw_likeliest(axes: Axes, likeliest: npt.NDArray[np.integer], labels: Sequence[str], side: int) -> None:
    present, counts = np.unique(likeliest.astype(np.int64), return_counts=True)
    order = present[np.argsort(-counts, kind="stable")]
    shown = order[: len(_CLASS_COLOURS) - 1]
    index = np.full(likeliest.shape, len(shown))
    for i, label in enumerate(shown):
        index[likeliest == label] = i
    colours = [*_CLASS_COLOURS[: len(shown)], MUTED]
    norm = BoundaryNorm(np.arange(-0.5, len(colours) + 0.5), len(colours))
    axes.imshow(index, cmap=ListedColormap(colours), norm=norm, extent=(0, side, side, 0), interpolation="nearest")
    _undecorated(axes, "the likeliest class")
    names = [short(drawable(labels[i]), 16) for i in shown]
    if len(order) > len(shown):
        names.append("others")
    handles = [Patch(facecolor=colours[i], label=name) for i, name in enumerate(names)]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.02, 0.0), ncols=3, fontsize=9, frameon=False)
