"""The curves of a job, made from its events: what a chart shows is a function of the events so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pyserve.v1 import jobs_pb2

_BLUE, _ORANGE, _GREEN = "#0072b2", "#d55e00", "#009e73"  # Okabe & Ito's, told apart by the colour-blind, too
_GRID = "#80808040"  # seen on white and on black; what is written takes the page's own colour
_MOST_POINTS = 400


class Curves:
    """Takes in a job's events in order; gives ECharts options of what it has seen."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, float]] = []
        self._epochs: list[tuple[int, dict[str, float]]] = []
        self._runs: dict[int, list[tuple[float, float]]] = defaultdict(list)
        self._last_step = 0

    def add(self, event: jobs_pb2.Event) -> bool:
        """Take in one event; whether a chart changes."""
        kind = event.WhichOneof("event")
        if kind == "step":
            self._last_step = event.step.step
            self._steps.append((event.step.step, event.step.loss))
        elif kind == "epoch":
            self._epochs.append((self._last_step, dict(event.epoch.metrics)))
        elif kind == "curve_point":
            self._runs[event.curve_point.run].append(
                (event.curve_point.learning_rate, event.curve_point.smoothed_loss)
            )
        elif kind == "phase":
            self._runs.clear()  # a phase that finds its own rate begins a new curve
        else:
            return False
        return True

    @property
    def finds_rate(self) -> bool:
        """Whether there is a range test to show."""
        return bool(self._runs)

    @property
    def trains(self) -> bool:
        """Whether there are steps to show."""
        return bool(self._steps)

    def losses(self) -> dict[str, Any]:
        """Training loss by step, validation loss at the ends of epochs."""
        valid = [(step, metrics["loss"]) for step, metrics in self._epochs if "loss" in metrics]
        options = _axes("step", "loss")
        options["series"] = [
            _line("training", _thinned(self._steps), _BLUE),
            _line("validation", valid, _ORANGE, symbol=True),
        ]
        return options

    def accuracies(self) -> dict[str, Any]:
        """Validation accuracy by epoch, percent."""
        points = [
            (number, round(100 * metrics["accuracy"], 2))
            for number, (_, metrics) in enumerate(self._epochs, start=1)
            if "accuracy" in metrics
        ]
        options = _axes("epoch", "accuracy, %")
        options["xAxis"]["minInterval"] = 1
        options["yAxis"]["max"] = 100
        options["series"] = [_line("validation", points, _GREEN, symbol=True)]
        return options

    def range_test(self, suggestion: float | None = None) -> dict[str, Any]:
        """Smoothed loss by learning rate, one line for each run, and what was suggested."""
        options = _axes("learning rate", "loss, smoothed", log=True)
        several = len(self._runs) > 1
        options["series"] = [
            _line(f"run {run + 1}" if several else "loss", points, _BLUE)
            for run, points in sorted(self._runs.items())
        ]
        options["yAxis"] |= self._readable_losses()
        # the limits are no round numbers
        options["yAxis"]["axisLabel"] = {"showMinLabel": False, "showMaxLabel": False}
        if suggestion:
            limits = options["yAxis"]
            points = [(suggestion, limits["min"]), (suggestion, limits["max"])]
            options["series"].append(_line(f"suggested: {suggestion:.2g}", points, _ORANGE))
        return options

    def _readable_losses(self) -> dict[str, float]:
        """Limits that leave out most of a divergence: it would flatten what matters."""
        losses = [loss for points in self._runs.values() for _, loss in points]
        if not losses:
            return {"min": 0, "max": 1}
        first = max(points[0][1] for points in self._runs.values())
        lowest = min(losses)
        return {
            "min": round(max(lowest - 0.05 * first, 0), 3),
            "max": round(first + (first - lowest) * 0.5 + 0.1, 3),
        }


def _axes(x: str, y: str, *, log: bool = False) -> dict[str, Any]:
    name: dict[str, Any] = {"nameLocation": "middle", "nameGap": 28}
    short: dict[str, Any] = {"hideOverlap": True}
    if log:
        short[":formatter"] = "(value) => (value < 0.001 ? value.toExponential() : String(value))"
    grid = {"splitLine": {"lineStyle": {"color": _GRID}}}
    return {
        "animation": False,
        "backgroundColor": "transparent",
        "grid": {"left": 58, "right": 24, "top": 34, "bottom": 46},
        "tooltip": {"trigger": "axis"},
        "legend": {"top": 0},
        "xAxis": {"type": "log" if log else "value", "name": x, "scale": True, "axisLabel": short, **name, **grid},
        "yAxis": {"type": "value", "name": y, "scale": True, **name, "nameGap": 40, **grid},
        "series": [],
    }


def _line(name: str, points: Sequence[tuple[float, float]], color: str, *, symbol: bool = False) -> dict[str, Any]:
    return {
        "type": "line",
        "name": name,
        "data": [list(point) for point in points],
        "showSymbol": symbol or len(points) < 2,
        "lineStyle": {"width": 2, "color": color},
        "itemStyle": {"color": color},
    }


def _thinned(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """Means of neighbours, so that a long training is no more to draw than a short one."""
    size = -(-len(points) // _MOST_POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], round(sum(loss for _, loss in group) / len(group), 5)) for group in groups]
