"""Figures: each is a PNG and an SVG, the same numbers give the same bytes, odd input is drawn."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET  # our own output
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from pyserve.errors import InvalidArgumentError
from pyserve.insight import figures
from pyserve.insight.figures import FIGURES, FigureFile, Tile

Drawn = tuple[FigureFile, FigureFile]


@dataclass(frozen=True)
class Curve:
    """One run of a range test."""

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]


def curve(runs: int = 1, n: int = 60) -> list[Curve]:
    lrs = np.geomspace(1e-6, 1.0, n)
    made = []
    for run in range(runs):
        losses = (
            2.3
            - 1.5 / (1 + np.exp(-4 * (np.log10(lrs) + 3)))
            + np.where(lrs > 0.3, 20 * (lrs - 0.3), 0)
            + run / 10
        )
        made.append(Curve(lrs.tolist(), losses.tolist(), losses.tolist()))
    return made


def history(epochs: int = 5) -> list[dict[str, float]]:
    return [
        {"epoch": e, "step": 10 * e, "train_loss": 2 / e, "loss": 2.2 / e, "accuracy": 1 - 0.5 / e}
        for e in range(1, epochs + 1)
    ]


def tiles(count: int) -> list[Tile]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 12, 20, 3), dtype=np.uint8)
    return [Tile(p, "cat", "dog" if i % 2 else "cat", 0.9, 0.1 if i % 2 else 0.9) for i, p in enumerate(pixels)]


EXAMPLES: dict[str, Callable[[], Drawn]] = {
    "lr_curve": lambda: figures.lr_curve(curve(3), {"valley": 1e-3, "steep": 2e-3}, rule="valley", spreads={}),
    "training_curves": lambda: figures.training_curves(
        history(), best_epoch=5, steps=[(0.1, 2.0, 0.1), (0.2, 1.9, 0.2)]
    ),
    "confusion_matrix": lambda: figures.confusion_matrix(np.eye(3, dtype=np.int64) * 7, ["a", "b", "c"]),
    "gallery": lambda: figures.gallery(tiles(7)),
    "filters": lambda: figures.filters(np.random.default_rng(0).normal(size=(16, 3, 3, 3))),
}


def check(drawn: Drawn, name: str) -> tuple[Image.Image, str]:
    """Both files are what they say."""
    png, svg = drawn
    assert (png.name, png.media_type) == (f"{name}.png", "image/png")
    assert (svg.name, svg.media_type) == (f"{name}.svg", "image/svg+xml")
    image = Image.open(io.BytesIO(png.data)).convert("RGB")
    assert min(image.size) >= 100
    assert len(image.getcolors(2**24) or ()) > 3, "nothing is drawn"
    root = ET.fromstring(svg.data)  # noqa: S314
    return image, " ".join("".join(t.itertext()) for t in root.iter("{http://www.w3.org/2000/svg}text"))


def test_every_figure_has_an_example() -> None:
    assert set(EXAMPLES) == set(FIGURES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_same_numbers_give_the_same_bytes(name: str) -> None:
    first = EXAMPLES[name]()
    check(first, name)
    with mpl.rc_context({"font.size": 40, "axes.facecolor": "red"}):  # somebody else's settings
        assert EXAMPLES[name]() == first
        assert mpl.rcParams["font.size"] == 40


def test_confusion_matrix_writes_counts_and_accuracy() -> None:
    counts = np.array([[41, 2], [7, 50]])
    _, text = check(figures.confusion_matrix(counts, ["ant", "bee"]), "confusion_matrix")
    for word in ("ant", "bee", "41", "50", "91"):
        assert word in text


@pytest.mark.parametrize("classes", [1, 2, 37, 100, 1000])
def test_confusion_matrices_of_any_size(classes: int) -> None:
    counts = np.random.default_rng(0).integers(0, 3, (classes, classes))
    check(figures.confusion_matrix(counts, [f"class {i}" for i in range(classes)]), "confusion_matrix")


def test_classes_that_nobody_has_and_names_that_cannot_be_drawn() -> None:
    names = ["$x^2$ <&>", "\N{CJK UNIFIED IDEOGRAPH-4E2D}\n\x00", "long " * 40]
    _, text = check(figures.confusion_matrix(np.zeros((3, 3), np.int64), names), "confusion_matrix")
    assert "$x^2$ <&>" in text
    check(figures.gallery([Tile(None, names[0], names[1], 0.5, 0.1)]), "gallery")


@pytest.mark.parametrize("shape", [(2, 3), (0, 0), (2,)])
def test_counts_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError, match="counts: got"):
        figures.confusion_matrix(np.zeros(shape, np.int64), ["a", "b"])


@pytest.mark.parametrize("count", [0, 1, 2, 9, 100])
def test_galleries_of_any_length(count: int) -> None:
    _, text = check(figures.gallery(tiles(count), title="Most incorrect"), "gallery")
    assert "Most incorrect" in text
    assert ("no such pictures" in text) == (count == 0)


def test_gallery_shows_the_pictures_themselves() -> None:
    """Red on the left, blue on the right, and not the other way round or stretched."""
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[:, :20, 0] = 255
    picture[:, 20:, 2] = 255
    image, _ = check(figures.gallery([Tile(picture, "a", "a", 1.0, 1.0)]), "gallery")
    pixels = np.asarray(image).astype(int)
    red = np.argwhere((pixels[..., 0] > 240) & (pixels[..., 1] < 15) & (pixels[..., 2] < 15))
    blue = np.argwhere((pixels[..., 2] > 240) & (pixels[..., 0] < 15) & (pixels[..., 1] < 15))
    assert red[:, 1].max() <= blue[:, 1].min()
    height, width = np.ptp(red, axis=0)
    assert width == pytest.approx(height / 2, rel=0.05)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (64, 3, 7, 7), (6, 1, 5, 5), (512, 3, 3, 3), (7, 3, 2, 4)])
def test_filters_of_any_number(shape: tuple[int, ...]) -> None:
    check(figures.filters(np.random.default_rng(0).normal(size=shape)), "filters")


def test_filters_that_are_all_zero_or_not_finite() -> None:
    weights = np.zeros((4, 3, 3, 3))
    weights[1] = np.nan
    weights[2, 0, 0, 0] = np.inf
    check(figures.filters(weights), "filters")


@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (4, 3, 3), (0, 3, 3, 3)])
def test_filters_that_are_no_pictures(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError, match="weights: got"):
        figures.filters(np.zeros(shape))


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_training_curves_mark_the_best_epoch(epochs: int) -> None:
    _, text = check(figures.training_curves(history(epochs), best_epoch=epochs, steps=[]), "training_curves")
    assert f"epoch {epochs}: " in text


def test_training_curves_without_an_epoch_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="history"):
        figures.training_curves([], best_epoch=0, steps=[])


def test_lr_curve_names_its_suggestions() -> None:
    _, text = check(
        figures.lr_curve(curve(), {"valley": 1e-3, "slide": 3e-2}, rule="slide", spreads={"slide": (1e-2, 5e-2)}),
        "lr_curve",
    )
    assert "valley" in text
    assert "slide" in text


def test_lr_curve_that_diverges_at_once() -> None:
    wild: Any = Curve([1e-3, 1e-2, 1e-1], [2.0, float("nan"), float("inf")], [2.0, float("nan"), float("inf")])
    check(figures.lr_curve([wild], {}, rule="valley", spreads={}), "lr_curve")
