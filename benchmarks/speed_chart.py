"""A benchmark's rows as a picture: how many times ours each rival takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pyserve.insight.figures.style import BLUE, GREEN, INK, ORANGE, PURPLE, VERMILION, figure, new_figure

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)


def write_chart(path: Path, rows: Sequence[dict[str, Any]], rivals: Sequence[str], title: str) -> None:
    """Write the picture beside the result file `path`, as PNG and SVG of its name."""

    @figure(path.stem)
    def chart() -> Figure:
        built = new_figure(0.9 + 0.16 * len(rows) * (len(rivals) + 1))
        axes = built.subplots()
        height = 1 / (len(rivals) + 1)
        for place, rival in enumerate(rivals):
            ratios = [row[f"{rival} ms"] / row["ours ms"] for row in rows]
            at = [-i - (place - (len(rivals) - 1) / 2) * height for i in range(len(rows))]
            axes.barh(at, ratios, height * 0.9, color=_COLOURS[place % len(_COLOURS)], label=rival)
            for y, ratio in zip(at, ratios, strict=True):
                axes.text(ratio + 0.02, y, f"{ratio:.2f}", va="center", fontsize=7, color=INK)
        axes.axvline(1, color=VERMILION, linewidth=1.5)
        axes.set_yticks([-i for i in range(len(rows))], [row["case"] for row in rows])
        axes.set(xlabel="time ÷ ours (the line: as fast as ours)", title=title)
        axes.grid(axis="y", visible=False)
        axes.legend(loc="lower right", fontsize=8)
        return built

    for file in chart():
        path.with_name(file.name).write_bytes(file.data)
