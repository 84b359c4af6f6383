"""What all figures share: sizes, colours that colour-blind readers can tell apart, texts, rendering.

matplotlib is used through `Figure` objects alone, no pyplot. Its settings are global, so figures are drawn one at
a time, each from matplotlib's own defaults, whatever settings file the user has.
"""

from __future__ import annotations

import functools
import io
import math
import threading
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullFormatter

P = ParamSpec("P")

WIDTH_IN = 9.4  # at 150 dots per inch: 1410 pixels
DPI = 150
# Okabe & Ito's palette, distinguishable with every common colour blindness
BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY = "#0072B2", "#E69F00", "#009E73", "#AA4499", "#D55E00", "#56B4E9"
INK, MUTED, FAINT = "#1c1c1c", "#6a6a6a", "#d9d9d9"
UNKNOWN = "\N{WHITE SQUARE}"
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")

_RC: dict[Any, Any] = {  # a later matplotlib names its keys as literals, an earlier one does not
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 11,
    "text.parse_math": False,  # a class may be called $x$
    "text.color": INK,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "white",
    "svg.fonttype": "none",  # texts stay texts: small files that can be searched
    "svg.hashsalt": "pyserve",
}
_lock = threading.Lock()


@dataclass(frozen=True)
class FigureFile:
    """An encoded figure."""

    name: str  # file name without a folder
    media_type: str  # "image/png" or "image/svg+xml"
    data: bytes


Builder = Callable[P, Figure]
Drawing = Callable[P, tuple[FigureFile, FigureFile]]
FIGURES: dict[str, Callable[..., tuple[FigureFile, FigureFile]]] = {}


def figure(name: str) -> Callable[[Builder[P]], Drawing[P]]:
    """Make a function that builds a `Figure` into one that gives it as `<name>.png` and `<name>.svg`."""

    def decorate(build: Builder[P]) -> Drawing[P]:
        @functools.wraps(build)
        def draw(*args: P.args, **kwargs: P.kwargs) -> tuple[FigureFile, FigureFile]:
            with _lock, mpl.rc_context():
                mpl.rcdefaults()
                mpl.rcParams.update(_RC)
                return _render(name, build(*args, **kwargs))

        FIGURES[name] = draw
        return draw

    return decorate


def _render(name: str, built: Figure) -> tuple[FigureFile, FigureFile]:
    png, svg = io.BytesIO(), io.BytesIO()
    built.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    built.savefig(svg, format="svg", dpi=DPI, metadata={"Date": None, "Creator": None})
    return (
        FigureFile(f"{name}.png", "image/png", png.getvalue()),
        FigureFile(f"{name}.svg", "image/svg+xml", svg.getvalue()),
    )


def new_figure(height_in: float, width_in: float = WIDTH_IN, *, layout: Any = "constrained") -> Figure:
    """An empty figure, laid out by matplotlib unless `layout` is None."""
    built = Figure(figsize=(width_in, height_in), dpi=DPI, layout=layout, facecolor="white")
    engine = built.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(w_pad=0.1, h_pad=0.1)  # inches around each axes
    FigureCanvasAgg(built)  # measures texts
    return built


def logarithmic(axes: Axes) -> None:
    """Make an x-axis logarithmic, with powers of ten beside it."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(_power_of_ten))  # matplotlib's own is mathematics, which is off
    axes.xaxis.set_minor_formatter(NullFormatter())


def _power_of_ten(value: float, _: object) -> str:
    return f"10{str(round(math.log10(value))).translate(_SUPERSCRIPTS)}"


@functools.cache
def _drawable() -> frozenset[int]:
    """Code points of which DejaVu Sans has a picture."""
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return frozenset(font.get_charmap())


def drawable(text: str) -> str:
    """The text with what cannot be drawn replaced: controls by a space, unknown characters by a white square."""
    known = _drawable()
    kept = (
        " " if unicodedata.category(c)[0] in "CZ" else c if ord(c) in known else UNKNOWN
        for c in unicodedata.normalize("NFC", text)
    )
    return " ".join("".join(kept).split())


def short(text: str, limit: int) -> str:
    """At most `limit` characters, the middle left out: class names differ as often at their ends as before."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[: limit - 1 - head]}…{text[len(text) - head :]}"


def label_texts(labels: Sequence[str], limit: int = 24) -> list[str]:
    """Class names as they are drawn: short, in known characters, and still different from each other."""
    texts = [short(drawable(label), limit) for label in labels]
    lost = {t for t in texts if texts.count(t) > 1} | {t for t in texts if UNKNOWN in t or not t}
    return [f"{text} #{i}".strip() if text in lost else text for i, text in enumerate(texts)]


def number(value: float) -> str:
    """A learning rate as one types it: 0.0032 as 3.2e-3."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def percent(fraction: float) -> str:
    """0.9837 as 98.4 %; what is not quite everything or nothing never looks like it."""
    if 0.9995 <= fraction < 1:
        return ">99.9 %"
    if 0 < fraction < 0.0005:
        return "<0.1 %"
    return f"{fraction:.1%}".replace("%", " %")


@functools.cache
def even_colours() -> ListedColormap:
    """White to deep blue, perceptually even: straight lines in OKLab, whose L is lightness (Ottosson 2020)."""
    stops = np.array([[1.0, 0.0, 0.0], [0.80, -0.045, -0.075], [0.52, -0.045, -0.125], [0.28, -0.01, -0.10]])
    position = (1.0 - stops[:, 0]) / (1.0 - stops[-1, 0])  # lightness falls at one rate throughout
    t = np.linspace(0, 1, 256)
    lab = np.stack([np.interp(t, position, stops[:, k]) for k in range(3)], axis=1)
    return ListedColormap(_oklab_to_srgb(lab), name="pyserve_even")


@functools.cache
def diverging_colours() -> ListedColormap:
    """Blue for less, near-white for nothing, vermilion for more; alike light at both ends, even in OKLab."""
    less = np.array([[0.45, -0.035, -0.14], [0.75, -0.045, -0.075]])
    more = np.array([[0.45, 0.12, 0.09], [0.75, 0.075, 0.07]])
    middle = np.array([[0.97, 0.0, 0.0]])
    stops = np.concatenate([less, middle, more[::-1]])
    distance = np.array([-0.52, -0.22, 0.0, 0.22, 0.52])  # of the lightness from the middle's
    t = np.linspace(-0.52, 0.52, 257)
    lab = np.stack([np.interp(t, distance, stops[:, k]) for k in range(3)], axis=1)
    return ListedColormap(_oklab_to_srgb(lab), name="pyserve_diverging")


def _oklab_to_srgb(lab: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip((lab @ to_lms.T) ** 3 @ to_rgb.T, 0, 1)
    result: npt.NDArray[np.float64] = np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    return np.clip(result, 0, 1)
