"""Reliability diagrams: how sure a model is against how often it is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from pyserve.errors import InvalidArgumentError
from pyserve.insight.figures.style import BLUE, INK, MUTED, VERMILION, figure, new_figure, percent


@dataclass(frozen=True)
class ReliabilityBar:
    """Pictures about which the model is about as sure; the two means are NaN where there are none."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@figure("reliability")
def reliability(
    panels: Sequence[tuple[str, Sequence[ReliabilityBar], float]], *, title: str = "Calibration"
) -> Figure:
    """One diagram for each state of the model, side by side; below each, how many pictures are in the bins.

    Args:
        panels: name, bars and expected calibration error (0…1) of each, one or two.

    Raises:
        InvalidArgumentError: no panel.
    """
    if not panels:
        raise InvalidArgumentError.field("panels", "none", "one or two")
    built = new_figure(5.9, 9.4 if len(panels) > 1 else 5.2)
    grid = built.add_gridspec(2, len(panels), height_ratios=(3.2, 1))
    for column, (name, bars, error) in enumerate(panels):
        above = built.add_subplot(grid[0, column])
        below = built.add_subplot(grid[1, column], sharex=above)
        _draw_accuracy(above, bars, f"{name}: calibration error {percent(error)}")
        _draw_counts(below, bars)
        if column == 0:
            above.set_ylabel("share that is right")
            below.set_ylabel("pictures")
    built.suptitle(title, x=0.01, ha="left", fontsize=13)
    return built


def _draw_accuracy(axes: Axes, bars: Sequence[ReliabilityBar], title: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2, zorder=4)
    for bar in bars:
        if not bar.count:
            continue
        width = max(bar.high - bar.low, 0.004)
        left = (bar.low + bar.high - width) / 2
        axes.bar(left, bar.accuracy, width, align="edge", color=BLUE, alpha=0.85, edgecolor="white", linewidth=0.8)
        gap = bar.confidence - bar.accuracy
        axes.bar(
            left,
            gap,
            width,
            bottom=bar.accuracy,
            align="edge",
            color="none",
            edgecolor=VERMILION,
            hatch="////",
            linewidth=0.8,
            zorder=3,
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    _percent_axis(axes)
    axes.tick_params(labelbottom=False)
    handles = [
        axes.bar([0], [0], color=BLUE, label="accuracy"),
        axes.bar([0], [0], color="none", edgecolor=VERMILION, hatch="////", label="too sure, or\nnot sure enough"),
    ]
    axes.legend(handles=handles, loc="upper left", fontsize=9)


def _draw_counts(axes: Axes, bars: Sequence[ReliabilityBar]) -> None:
    for bar in bars:
        width = max(bar.high - bar.low, 0.004)
        left = (bar.low + bar.high - width) / 2
        axes.bar(left, bar.count, width, align="edge", color=INK, alpha=0.75, edgecolor="white", linewidth=0.8)
    axes.set_xlim(0, 1)
    axes.set_yscale("symlog", linthresh=10)
    highest = max((bar.count for bar in bars), default=1)
    axes.set_ylim(0, 2 * max(highest, 1))
    axes.set_yticks([0, *[10**k for k in range(1, math.floor(math.log10(max(highest, 10))) + 1)]])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.minorticks_off()
    _percent_axis(axes, vertical=False)
    axes.set_xlabel("how sure the model is")


def _percent_axis(axes: Axes, *, vertical: bool = True) -> None:
    for axis in [axes.xaxis, *([axes.yaxis] if vertical else [])]:
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
