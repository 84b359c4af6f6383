"""Loss, accuracy and learning rate over a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pyserve.errors import InvalidArgumentError
from pyserve.insight.figures.style import BLUE, GREEN, INK, MUTED, VERMILION, figure, new_figure, percent

Values = npt.NDArray[np.float64]


@figure("training_curves")
def training_curves(
    history: Sequence[Mapping[str, float]],
    *,
    best_epoch: int = 0,
    steps: Sequence[tuple[float, float, float]] = (),
    title: str = "Training",
) -> Figure:
    """Training and validation loss, validation accuracy and, where steps are given, the learning rate, by epoch.

    Args:
        history: one mapping per epoch: "epoch" (from 1), "train_loss", "loss", "accuracy"; at least one.
        best_epoch: the one whose weights were kept; 0 marks none.
        steps: (epochs done as a fraction, smoothed loss, learning rate) of as many steps as one likes.

    Raises:
        InvalidArgumentError: an empty history.
    """
    if not history:
        raise InvalidArgumentError.field("history", "no epochs", "at least one")
    built = new_figure(6.6 if steps else 5.0)
    grid = built.add_gridspec(2 if steps else 1, 2, height_ratios=(3, 1) if steps else (1,))
    loss, accuracy = built.add_subplot(grid[0, 0]), built.add_subplot(grid[0, 1])
    axes = [loss, accuracy]
    _draw_loss(loss, history, steps)
    _draw_accuracy(accuracy, history, best_epoch)
    if steps:
        axes.append(built.add_subplot(grid[1, :]))
        _draw_rate(axes[-1], steps)
    last = max(e["epoch"] for e in history)
    for each in axes:
        each.set_xlim(*((0, 1.02 * last) if steps else (0.5, last + 0.5)))
        each.set_xlabel("epoch")
        each.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
        if best_epoch:
            each.axvline(best_epoch, color=MUTED, linewidth=1.2, linestyle=(0, (2, 3)), zorder=1)
    built.suptitle(f"{title}: {_summary(history, best_epoch)}", x=0.01, ha="left", fontsize=13)
    return built


def _summary(history: Sequence[Mapping[str, float]], best_epoch: int) -> str:
    epochs = f"{len(history)} epoch{'s' if len(history) > 1 else ''}"
    best = _entry(history, best_epoch)
    if best is None:
        return epochs
    return f"{epochs}, best is {best_epoch} with {percent(best['accuracy'])} of the validation pictures right"


def _entry(history: Sequence[Mapping[str, float]], epoch: int) -> Mapping[str, float] | None:
    return next((e for e in history if e["epoch"] == epoch and "accuracy" in e), None)


def _column(history: Sequence[Mapping[str, float]], key: str) -> tuple[Values, Values]:
    """Epochs and values where the value is there."""
    pairs = [(e["epoch"], e[key]) for e in history if key in e]
    array = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _draw_loss(
    axes: Axes, history: Sequence[Mapping[str, float]], steps: Sequence[tuple[float, float, float]]
) -> None:
    marker = "o" if len(history) <= 40 else ""
    if steps:
        epochs, values, _ = zip(*steps, strict=True)
        axes.plot(epochs, values, color=BLUE, linewidth=0.9, alpha=0.45)
    axes.plot(*_column(history, "train_loss"), color=BLUE, marker=marker, markersize=4, label="training")
    axes.plot(
        *_column(history, "loss"),
        color=VERMILION,
        marker=marker and "s",
        markersize=4,
        linestyle="--",
        label="validation",
    )
    shown = np.concatenate([_column(history, key)[1] for key in ("train_loss", "loss")])
    shown = shown[np.isfinite(shown)]
    if len(shown):
        # the first steps' losses and a diverged epoch may leave the picture, the rest keeps its shape
        top = 1.15 * float(np.percentile(shown, 98 if len(shown) > 50 else 100))
        axes.set_ylim(0, top if top > 0 else 1.0)
    axes.set_ylabel("loss (nats)")
    axes.legend(loc="upper right")


def _draw_accuracy(axes: Axes, history: Sequence[Mapping[str, float]], best_epoch: int) -> None:
    epochs, values = _column(history, "accuracy")
    marker = "o" if len(history) <= 40 else ""
    axes.plot(epochs, values, color=GREEN, marker=marker, markersize=4)
    best = _entry(history, best_epoch)
    if best is not None:
        axes.plot(
            [best_epoch], [best["accuracy"]], marker="*", markersize=16, color=GREEN, markeredgecolor="white"
        )
        axes.annotate(
            f"epoch {best_epoch}: {percent(best['accuracy'])}",
            xy=(best_epoch, best["accuracy"]),
            xytext=(0, 11),
            textcoords="offset points",
            ha=_side(best_epoch, epochs),
            va="bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            color=INK,
            fontweight="bold",
        )
    if len(values):
        low, high = float(values.min()), float(values.max())
        height = max(high - low, 0.02)
        axes.set_ylim(low - 0.1 * height, high + 0.18 * height)  # room for the words above the best
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * value:.4g} %" if 0 <= value <= 1 else "")
    )
    axes.set_ylabel("validation accuracy")


def _side(epoch: int, epochs: Values) -> Literal["left", "center", "right"]:
    """Where words at an epoch have room."""
    first, last = float(epochs.min()), float(epochs.max())
    place = (epoch - first) / (last - first) if last > first else 0.5
    return "left" if place < 0.2 else "right" if place > 0.8 else "center"


def _draw_rate(axes: Axes, steps: Sequence[tuple[float, float, float]]) -> None:
    epochs, _, rates = zip(*steps, strict=True)
    axes.plot(epochs, rates, color=INK, linewidth=1.6)
    axes.fill_between(epochs, rates, color=INK, alpha=0.06, linewidth=0)
    axes.set_ylim(0, max(rates) * 1.08)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axes.set_ylabel("learning rate")
