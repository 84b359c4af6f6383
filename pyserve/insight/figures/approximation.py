"""Networks that approximate a function: stairs, and width against depth at equal error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from pyserve.errors import InvalidArgumentError
from pyserve.insight.figures.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, VERMILION, figure, new_figure

Values = npt.NDArray[np.floating]
_DEPTH_STYLES = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "D"), (PURPLE, "^"))


@dataclass(frozen=True)
class Staircase:
    """A network with one hidden layer of steep units: its output, and each unit's place and height."""

    x: Values
    target: Values
    output: Values
    places: Values
    heights: Values
    error: float


@dataclass(frozen=True)
class NetworkError:
    """The best network of a depth and a width."""

    depth: int
    width: int
    parameters: int
    error: float


@figure("stairs")
def stairs(staircases: Sequence[Staircase], *, title: str = "A hidden layer of steps") -> Figure:
    """Each staircase against its target; below, where its steps are and how high.

    Args:
        staircases: one or more.

    Raises:
        InvalidArgumentError: none.
    """
    if not staircases:
        raise InvalidArgumentError.field("staircases", "none", "at least one")
    columns = min(len(staircases), 2)
    rows = math.ceil(len(staircases) / columns)
    built = new_figure(3.4 * rows + 0.5)
    panels = built.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, staircase in zip(panels, staircases, strict=False):
        _draw_staircase(axes, staircase)
    for axes in panels[len(staircases) :]:
        axes.set_visible(False)
    handles, _ = panels[0].get_legend_handles_labels()
    handles += [
        Line2D([], [], color=c, linewidth=2, label=way)
        for c, way in ((GREEN, "a step up"), (ORANGE, "a step down"))
    ]
    panels[0].legend(handles=handles, loc="upper left", fontsize=9, ncols=2)
    panels[0].set_yticks([tick for tick in panels[0].get_yticks() if tick >= 0])  # below are the steps
    built.suptitle(f"{title}: the more steps, the closer", x=0.01, ha="left", fontsize=13)
    return built


def _draw_staircase(axes: Axes, staircase: Staircase) -> None:
    axes.fill_between(staircase.x, staircase.output, color=BLUE, alpha=0.22, linewidth=0)
    axes.plot(staircase.x, staircase.output, color=BLUE, linewidth=1.8, label="the network")
    axes.plot(staircase.x, staircase.target, color=INK, linewidth=1.4, linestyle=(0, (4, 2)), label="the target")
    inside = (staircase.places >= 0) & (staircase.places <= 1)
    low = float(min(staircase.target.min(), 0.0))
    span = float(staircase.target.max()) - low
    base = low - 0.18 * span
    places, heights = staircase.places[inside], staircase.heights[inside]
    if len(heights):
        scaled = 0.12 * span * heights / float(np.abs(heights).max() or 1.0)
        colours = [GREEN if h > 0 else ORANGE for h in heights]
        axes.vlines(places, base, base + scaled, color=colours, linewidth=2 if len(places) < 30 else 1.2)
        axes.axhline(base, color=MUTED, linewidth=0.8)
    count = len(staircase.places)
    axes.set_title(f"{count} step{'s' if count != 1 else ''}: error {staircase.error:.2g}", fontsize=11)
    axes.set_xlim(0, 1)
    axes.set_ylim(low - 0.36 * span, float(staircase.target.max()) + 0.12 * span)


@figure("width_depth")
def width_depth(
    networks: Sequence[NetworkError], tolerance: float, *, title: str = "Width against depth at equal error"
) -> Figure:
    """Error against units per layer, one line for each depth; and what each depth needs to reach an error.

    Args:
        networks: of each depth those of growing width.
        tolerance: the error to be reached, > 0.

    Raises:
        InvalidArgumentError: no networks.
    """
    if not networks:
        raise InvalidArgumentError.field("networks", "none", "at least one")
    built = new_figure(4.6)
    curve, needs = built.subplots(1, 2, gridspec_kw={"width_ratios": (1.6, 1)})
    depths = sorted({n.depth for n in networks})
    for depth in depths:
        colour, marker = _DEPTH_STYLES[(depth - 1) % len(_DEPTH_STYLES)]
        of_depth = [n for n in networks if n.depth == depth]
        label = f"{depth} hidden layer{'s' if depth > 1 else ''}"
        errors = [max(n.error, 1e-9) for n in of_depth]
        curve.plot([n.width for n in of_depth], errors, color=colour, marker=marker, label=label)
    curve.axhline(tolerance, color=MUTED, linestyle=(0, (4, 3)), label=f"error {tolerance:g}")
    curve.set_xscale("log")
    curve.set_yscale("log")
    _plain_ticks(curve, sorted({n.width for n in networks}))
    curve.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    curve.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    curve.set_xlabel("units in each hidden layer")
    curve.set_ylabel("error (root mean square)")
    curve.legend(loc="lower left", fontsize=9)
    _draw_needs(needs, networks, depths, tolerance)
    built.suptitle(title, x=0.01, ha="left", fontsize=13)
    return built


def _plain_ticks(axes: Axes, widths: Sequence[int]) -> None:
    shown = [w for i, w in enumerate(widths) if i == 0 or w / max(widths[:i]) > 1.1]
    axes.xaxis.set_major_locator(FixedLocator([float(w) for w in shown]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()


def _draw_needs(axes: Axes, networks: Sequence[NetworkError], depths: Sequence[int], tolerance: float) -> None:
    for place, depth in enumerate(depths):
        colour, _ = _DEPTH_STYLES[(depth - 1) % len(_DEPTH_STYLES)]
        found = next((n for n in networks if n.depth == depth and n.error <= tolerance), None)
        if found is None:
            axes.text(0.1, place, "not reached", va="center", color=MUTED)
            continue
        axes.barh(place, found.width, color=colour, height=0.6)
        words = f" {found.width} units, {found.parameters} weights"
        axes.text(found.width, place, words, va="center", fontsize=9.5, color=INK)
    axes.set_yticks(range(len(depths)), [f"{d} layer{'s' if d > 1 else ''}" for d in depths])
    axes.invert_yaxis()
    axes.set_xlim(0, 2.1 * max((n.width for n in networks if n.error <= tolerance), default=1))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("units in each hidden layer")
    axes.set_title(f"needed for an error of {tolerance:g}", fontsize=11)
