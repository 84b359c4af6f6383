"""Loss against learning rate, and where the rules say the learning rate should lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyserve.errors import InvalidArgumentError
from pyserve.insight.figures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    figure,
    logarithmic,
    new_figure,
    number,
)

_COLOURS = (VERMILION, GREEN, PURPLE, ORANGE, SKY, INK)
_MARKERS = ("o", "s", "D", "^", "v", "P")  # a second sign beside the colour
_LABEL_GAP = 0.015  # between two labels, as a fraction of the axes' width
_ROW_HEIGHT = 0.055  # of the labels above the axes, as a fraction of its height

Values = npt.NDArray[np.float64]


class Curve(Protocol):
    """One run of a range test: learning rates ascending, mini-batch and smoothed losses (nats) of that length."""

    @property
    def lrs(self) -> Sequence[float]:
        """Learning rates."""

    @property
    def losses(self) -> Sequence[float]:
        """Mini-batch losses."""

    @property
    def smoothed(self) -> Sequence[float]:
        """Smoothed losses, which the rules read."""


@figure("lr_curve")
def lr_curve(
    runs: Sequence[Curve],
    suggestions: Mapping[str, float],
    *,
    rule: str = "",
    spreads: Mapping[str, tuple[float, float]] | None = None,
    title: str = "Learning-rate range test",
) -> Figure:
    """The first run in full, further ones faintly behind it, and every suggestion at its learning rate.

    Args:
        runs: at least one run with at least two points.
        suggestions: rule → learning rate; rules without one are left out.
        rule: the one that is recommended.
        spreads: rule → lowest and highest over several runs, drawn as a band.

    Raises:
        InvalidArgumentError: without a run of two points.
    """
    if not runs or len(runs[0].lrs) < 2:
        points = len(runs[0].lrs) if runs else 0
        raise InvalidArgumentError.field("runs", f"{points} points in the first run", "2 or more")
    built = new_figure(5.6)
    axes = built.add_subplot()
    logarithmic(axes)
    _draw_runs(axes, runs)
    bottom, top = _loss_limits(runs)
    axes.set_ylim(bottom, top)
    axes.set_xlim(min(min(r.lrs) for r in runs), max(max(r.lrs) for r in runs))
    axes.set_xlabel("learning rate (logarithmic)")
    axes.set_ylabel("loss (nats)")
    rows = _mark_suggestions(built, axes, runs[0], suggestions, rule, spreads or {})
    axes.set_title(title, pad=14 + 20 * rows)
    axes.legend(loc="lower left")
    return built


def _draw_runs(axes: Axes, runs: Sequence[Curve]) -> None:
    for i, run in enumerate(runs[1:]):
        label = f"{len(runs) - 1} more {'run' if len(runs) == 2 else 'runs'}, smoothed" if i == 0 else None
        axes.plot(run.lrs, run.smoothed, color=BLUE, alpha=0.3, linewidth=1.2, label=label)
    first = runs[0]
    axes.plot(first.lrs, first.losses, color="#9aa7b0", linewidth=0.9, alpha=0.9, label="each mini-batch")
    axes.plot(first.lrs, first.smoothed, color=BLUE, linewidth=2.4, label="smoothed")


def _loss_limits(runs: Sequence[Curve]) -> tuple[float, float]:
    """Where the curve has its shape; the explosion at its end may leave the picture."""
    smoothed = [_finite(run.smoothed) for run in runs]
    low = min(float(s.min()) for s in smoothed)
    raw = _finite(runs[0].losses)
    low = min(low, float(np.percentile(raw, 2)))
    # the highest before the lowest: from there the loss falls
    start = max(float(s[: int(s.argmin()) + 1].max()) for s in smoothed)
    start = max(start, float(np.percentile(raw[: max(len(raw) // 2, 1)], 98)))
    height = max(start - low, 1e-3 * max(abs(low), 1e-3))
    return low - 0.08 * height, start + 0.35 * height


def _finite(values: Sequence[float]) -> Values:
    array = np.asarray(values, dtype=np.float64)
    kept: Values = array[np.isfinite(array)]
    return kept if len(kept) else np.zeros(1)


def _mark_suggestions(
    built: Figure,
    axes: Axes,
    curve: Curve,
    suggestions: Mapping[str, float],
    rule: str,
    spreads: Mapping[str, tuple[float, float]],
) -> int:
    """Lines, markers on the curve and, above the axes, labels that do not overlap; the number of label rows."""
    if not suggestions:
        return 0
    names = sorted(suggestions, key=lambda name: suggestions[name])
    texts = [f"{name}  {number(suggestions[name])}" for name in names]
    at = [_fraction(axes, suggestions[name]) for name in names]
    widths = [_text_width(built, axes, text, bold=name == rule) for name, text in zip(names, texts, strict=True)]
    places = spread_out(at, widths, _LABEL_GAP)
    styles = {name: i for i, name in enumerate(suggestions)}  # the colour stays the rule's own
    for name, text, x, place in zip(names, texts, at, places, strict=True):
        colour = _COLOURS[styles[name] % len(_COLOURS)]
        chosen = name == rule
        rate = suggestions[name]
        if name in spreads and spreads[name][1] > spreads[name][0]:
            axes.axvspan(*spreads[name], color=colour, alpha=0.10, linewidth=0)
        axes.axvline(
            rate, color=colour, linewidth=2.0 if chosen else 1.2, linestyle="-" if chosen else (0, (4, 3))
        )
        axes.plot(
            [rate],
            [_at(curve, rate)],
            marker=_MARKERS[styles[name] % len(_MARKERS)],
            markersize=9 if chosen else 7,
            color=colour,
            markeredgecolor="white",
            linestyle="none",
            zorder=5,
        )
        axes.annotate(
            text,
            xy=(x, 1.0),
            xytext=(place, 1.0 + _ROW_HEIGHT),
            xycoords="axes fraction",
            textcoords="axes fraction",
            ha="center",
            va="bottom",
            color=colour if chosen else INK,
            fontweight="bold" if chosen else "normal",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1.2, "shrinkA": 1, "shrinkB": 0},
            annotation_clip=False,
        )
    return 1


def _fraction(axes: Axes, rate: float) -> float:
    """Where a learning rate lies on the axis, 0…1."""
    low, high = (math.log(v) for v in axes.get_xlim())
    return min(max((math.log(rate) - low) / (high - low), 0.0), 1.0)


def _text_width(built: Figure, axes: Axes, text: str, *, bold: bool) -> float:
    """Width of a label as a fraction of the axes' width (about 0.9 of the figure's)."""
    artist = axes.text(0, 0, text, fontweight="bold" if bold else "normal")
    width = artist.get_window_extent().width
    artist.remove()
    return float(width / (0.9 * built.bbox.width))


def _at(curve: Curve, rate: float) -> float:
    """The smoothed loss at a learning rate, between its points."""
    return float(np.interp(math.log(rate), np.log(np.asarray(curve.lrs, dtype=np.float64)), curve.smoothed))


def spread_out(wanted: Sequence[float], widths: Sequence[float], gap: float) -> list[float]:
    """Centres of labels on 0…1, as near to where they are wanted as they can be without overlapping.

    Least squares under the order of `wanted` (ascending): neighbours that would touch form a block that is placed
    at their mean (pool adjacent violators). Too many labels for the room overlap at the right end.
    """
    offsets = [0.0]
    for left, right in pairwise(widths):
        offsets.append(offsets[-1] + (left + right) / 2 + gap)
    blocks: list[tuple[float, int]] = []  # mean of (wanted − offset), number of labels
    for want, offset in zip(wanted, offsets, strict=True):
        mean, count = want - offset, 1
        while blocks and blocks[-1][0] > mean:
            before, n = blocks.pop()
            mean, count = (before * n + mean * count) / (n + count), n + count
        blocks.append((mean, count))
    shifts = [mean for mean, count in blocks for _ in range(count)]
    lowest = widths[0] / 2 if widths else 0.0
    highest = 1 - widths[-1] / 2 - offsets[-1] if widths else 0.0
    return [offset + max(min(shift, highest), lowest) for offset, shift in zip(offsets, shifts, strict=True)]
