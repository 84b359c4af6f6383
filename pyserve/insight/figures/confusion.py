"""Which class is taken for which, of one model and of two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pyserve.errors import InvalidArgumentError
from pyserve.insight.figures.style import (
    INK,
    WIDTH_IN,
    diverging_colours,
    even_colours,
    figure,
    label_texts,
    new_figure,
    percent,
    short,
)

_POINTS_PER_INCH = 72
_MAX_WIDTH_IN = 14.0
_MAX_CELL_IN = 1.5
_MIN_WIDTH_IN = 7.4
_LABELLED_CELL_IN = 0.095  # below this a label in the smallest type no longer fits beside its row
_DIGIT_WIDTH = 0.64  # of the type size, DejaVu Sans
_COMPARED_WIDTH_IN = 13.0
# Rare confusions are what one looks for: the colour grows with the square root of a share, so that 1 % is seen.
_GAMMA = 0.5


@figure("confusion_matrix")
def confusion_matrix(
    counts: npt.NDArray[np.integer], labels: Sequence[str], *, title: str = "Confusion matrix"
) -> Figure:
    """Rows are the data set's classes, columns the model's answers; colours are shares of each row.

    Numbers are written into the cells where they fit; with very many classes only some are named.

    Args:
        counts: integers ≥ 0, [C, C], C ≥ 1.
        labels: C names.

    Raises:
        InvalidArgumentError: where the shapes do not fit.
    """
    classes = len(labels)
    if not classes or counts.shape != (classes, classes):
        raise InvalidArgumentError.field(
            "counts", list(counts.shape), f"[{classes}, {classes}], as many as labels"
        )
    texts = label_texts(labels, 24 if classes <= 30 else 18)
    margin_in = 0.9 + 0.085 * max(len(t) for t in texts)
    cell_in = min(max((WIDTH_IN - margin_in - 1.2) / classes, _LABELLED_CELL_IN), _MAX_CELL_IN)
    cell_in = min(cell_in, (_MAX_WIDTH_IN - margin_in - 1.2) / classes)
    side_in = cell_in * classes
    built = new_figure(side_in + margin_in + 0.6, max(side_in + margin_in + 1.4, _MIN_WIDTH_IN))
    axes = built.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    norm = PowerNorm(_GAMMA, vmin=0.0, vmax=1.0)
    image = axes.imshow(shares, cmap=even_colours(), norm=norm, interpolation="nearest", aspect="equal")
    _decorate(axes, texts, cell_in)
    _write_numbers(axes, counts, shares, cell_in)
    bar = built.colorbar(image, ax=axes, shrink=0.8, pad=0.02, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    bar.ax.minorticks_off()
    bar.set_label("share of the class's pictures")
    bar.outline.set_visible(False)
    built.suptitle(f"{title}: {_summary(counts)}", x=0.02, ha="left", fontsize=13)
    return built


def _summary(counts: npt.NDArray[np.integer]) -> str:
    total, right = int(counts.sum()), int(np.trace(counts))
    return f"{percent(right / total)} of {total:,} pictures right" if total else "no pictures"


def _decorate(axes: Axes, texts: Sequence[str], cell_in: float) -> None:
    classes = len(texts)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    every = max(1, int(np.ceil(_LABELLED_CELL_IN / cell_in - 1e-6)))
    places = list(range(0, classes, every))
    size = min(11.0, 0.82 * every * cell_in * _POINTS_PER_INCH)
    upright = cell_in * _POINTS_PER_INCH >= 0.62 * size * max(len(t) for t in texts)
    axes.set_xticks(places, [texts[i] for i in places], fontsize=size, rotation=0 if upright else 90)
    axes.set_yticks(places, [texts[i] for i in places], fontsize=size)
    axes.tick_params(length=0)
    axes.set_xlabel("label that the model gives")
    axes.set_ylabel("label in the data set")
    if cell_in > 0.15:  # hairlines between the cells
        axes.set_xticks(np.arange(-0.5, classes), minor=True)
        axes.set_yticks(np.arange(-0.5, classes), minor=True)
        axes.grid(which="minor", color="#d3d8dc", linewidth=0.8)
        axes.tick_params(which="minor", length=0)
        axes.set_axisbelow(False)


def _write_numbers(
    axes: Axes, counts: npt.NDArray[np.integer], shares: npt.NDArray[np.float64], cell_in: float
) -> None:
    digits = max(len(str(int(counts.max(initial=0)))), 2)
    size = min(12.0, cell_in * _POINTS_PER_INCH * 0.86 / (_DIGIT_WIDTH * digits), cell_in * _POINTS_PER_INCH * 0.6)
    if size < 5:
        return
    for (i, j), count in np.ndenumerate(counts):
        if count:
            axes.text(
                j,
                i,
                str(int(count)),
                ha="center",
                va="center",
                fontsize=size,
                color="white" if shares[i, j] ** _GAMMA > 0.55 else INK,
                fontweight="bold" if i == j else "normal",
            )


@figure("comparison")
def comparison(
    before: npt.NDArray[np.integer],
    after: npt.NDArray[np.integer],
    labels: Sequence[str],
    *,
    names: tuple[str, str] = ("before", "after"),
    title: str = "Two models on the same pictures",
) -> Figure:
    """The confusion matrices of two models, and what changed: pictures more or fewer in each cell.

    Args:
        before, after: integers ≥ 0, [C, C], C ≥ 1.
        labels: C names.
        names: of the models.

    Raises:
        InvalidArgumentError: where the shapes do not fit.
    """
    classes = len(labels)
    for matrix in (before, after):
        if not classes or matrix.shape != (classes, classes):
            raise InvalidArgumentError.field(
                "counts", list(matrix.shape), f"[{classes}, {classes}], as many as labels"
            )
    texts = label_texts(labels, 16)
    margin_in = 0.6 + 0.085 * max(len(t) for t in texts)
    cell_in = min((_COMPARED_WIDTH_IN - margin_in - 1.2) / 3 / classes, _MAX_CELL_IN)
    built = new_figure(cell_in * classes + margin_in + 1.0, _COMPARED_WIDTH_IN)
    panels = built.subplots(1, 3)
    for axes, matrix, name in zip(panels, (before, after), names, strict=False):
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        norm = PowerNorm(_GAMMA, vmin=0.0, vmax=1.0)
        axes.imshow(shares, cmap=even_colours(), norm=norm, interpolation="nearest", aspect="equal")
        _write_numbers(axes, matrix, shares, cell_in)
        axes.set_title(f"{short(name, 34)}\n{_summary(matrix)}", fontsize=10)
    change = after - before
    most = max(int(np.abs(change).max()), 1)
    image = panels[2].imshow(
        change, cmap=diverging_colours(), vmin=-most, vmax=most, interpolation="nearest", aspect="equal"
    )
    _write_change(panels[2], change, cell_in)
    panels[2].set_title("change\nin pictures", fontsize=10)
    for axes in panels:
        _decorate(axes, texts, cell_in)
    for axes in panels[1:]:
        axes.set_ylabel("")
    bar = built.colorbar(image, ax=panels[2], shrink=0.8, pad=0.02)
    bar.set_label("fewer   ←   pictures   →   more", fontsize=9)
    bar.locator = MaxNLocator(integer=True)
    bar.update_ticks()
    bar.outline.set_visible(False)
    built.suptitle(title, x=0.01, ha="left", fontsize=13)
    return built


def _write_change(axes: Axes, change: npt.NDArray[np.integer], cell_in: float) -> None:
    digits = len(str(int(np.abs(change).max(initial=0)))) + 1
    size = min(11.0, cell_in * _POINTS_PER_INCH * 0.86 / (_DIGIT_WIDTH * digits), cell_in * _POINTS_PER_INCH * 0.6)
    if size < 5:
        return
    most = max(int(np.abs(change).max()), 1)
    for (i, j), count in np.ndenumerate(change):
        if count:
            colour = "white" if abs(count) > 0.6 * most else INK
            axes.text(
                j, i, f"{int(count):+d}".replace("-", "−"), ha="center", va="center", fontsize=size, color=colour
            )
