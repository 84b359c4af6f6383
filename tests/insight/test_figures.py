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
from pyserve.insight.figures import (
    FIGURES,
    FigureFile,
    NetworkError,
    Pair,
    PatchPair,
    ReliabilityBar,
    Staircase,
    Tile,
)
from pyserve.insight.figures.patches import cut_out, projection_colours
from pyserve.insight.figures.style import diverging_colours, even_colours

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


def noise(*sizes: int) -> Any:
    """0…1."""
    return np.random.default_rng(0).random(sizes)


def picture(side: int = 32) -> Any:
    return noise(side, side, 3)


def pair(note: str = "", *, warns: bool = False) -> Pair:
    pixels = (255 * picture(12)).astype(np.uint8)
    return Pair(pixels, None if warns else pixels, "cat/1.png (train)", "cat/7.png (valid)", note, warns)


def pairs(count: int, side: int = 30) -> list[PatchPair]:
    return [PatchPair((255 * picture(side)).astype(np.uint8), noise(3, side, side) - 0.5) for _ in range(count)]


def bars() -> list[ReliabilityBar]:
    full = [ReliabilityBar(i / 5, (i + 1) / 5, 10**i, (i + 0.5) / 5, (i + 0.3) / 5) for i in range(4)]
    return [*full, ReliabilityBar(0.8, 1.0, 0, float("nan"), float("nan"))]


def staircase(steps: int) -> Staircase:
    x = np.linspace(0, 1, 50)
    places, heights = np.linspace(-0.1, 1.1, steps), np.where(np.arange(steps) % 2, 0.5, -0.5)
    return Staircase(x, x**2, np.round(x**2 * 4) / 4, places, heights, 0.12)


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
    "comparison": lambda: figures.comparison(
        np.array([[5, 2], [1, 7]]), np.array([[7, 0], [2, 6]]), ["a", "b"], names=("first", "second")
    ),
    "reliability": lambda: figures.reliability([("as it is", bars(), 0.04), ("at 2 ×", bars(), 0.01)]),
    "duplicates": lambda: figures.duplicates([pair(), pair("two labels: a and b", warns=True)]),
    "top_patches": lambda: figures.top_patches([("map 3", pairs(9)), ("map 4", [])], rule="guided"),
    "evolution": lambda: figures.evolution([("map 3", [None, *pairs(2)]), ("map 4", pairs(3))], [1, 2, 5]),
    "feature_maps": lambda: figures.feature_maps(noise(5, 8, 8), [3, 1, 4, 7, 9], picture()),
    "grad_cam": lambda: figures.grad_cam(noise(4, 4), picture(), "cat", 0.93, layer="layer4"),
    "occlusion": lambda: figures.occlusion(
        noise(4, 4), noise(4, 4), np.arange(16).reshape(4, 4) % 3, ["a", "b", "c"], picture(), "b", size=8
    ),
    "deconvnet": lambda: figures.deconvnet(
        noise(3, 32, 32) - 0.5, picture(), layer="conv2", channel=5, box=(3, 4, 20, 21)
    ),
    "kernel": lambda: figures.kernel(noise(20, 30), np.eye(3) - 0.5, noise(20, 30), name="own"),
    "stairs": lambda: figures.stairs([staircase(2), staircase(30)]),
    "width_depth": lambda: figures.width_depth(
        [NetworkError(d, w, 10 * w, 0.1 / w / d) for d in (1, 2, 3) for w in (2, 4, 8)], 0.01
    ),
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


@pytest.mark.parametrize("classes", [1, 2, 12, 40, 200])
def test_comparisons_of_any_size(classes: int) -> None:
    rng = np.random.default_rng(0)
    before, after = (rng.integers(0, 9, (classes, classes)) for _ in range(2))
    labels = [f"class {i}" for i in range(classes)]
    _, text = check(figures.comparison(before, after, labels), "comparison")
    change = int(after[0, 0] - before[0, 0])
    if 1 < classes <= 12 and change:
        assert f"{change:+d}".replace("-", "−") in text


def test_nothing_changed() -> None:
    same = np.eye(3, dtype=np.int64)
    check(figures.comparison(same, same, ["a", "b", "c"]), "comparison")
    with pytest.raises(InvalidArgumentError, match="counts: got"):
        figures.comparison(same, np.eye(2, dtype=np.int64), ["a", "b", "c"])


@pytest.mark.parametrize("count", [1, 2])
def test_reliability_of_one_state_or_two(count: int) -> None:
    _, text = check(figures.reliability([(f"state {i}", bars(), 0.0432) for i in range(count)]), "reliability")
    assert text.count("calibration error 4.3 %") == count
    with pytest.raises(InvalidArgumentError, match="panels"):
        figures.reliability([])


@pytest.mark.parametrize("count", [0, 1, 7])
def test_any_number_of_pairs(count: int) -> None:
    _, text = check(figures.duplicates([pair()] * count), "duplicates")
    assert ("no such pictures" in text) == (count == 0)


@pytest.mark.parametrize(
    ("channels", "count", "side"), [(1, 1, 3), (8, 9, 11), (9, 16, 40), (64, 9, 5), (2, 0, 9)]
)
def test_top_patches_of_any_number_and_size(channels: int, count: int, side: int) -> None:
    blocks = [(f"feature map {i}", pairs(count, side)) for i in range(channels)]
    _, text = check(figures.top_patches(blocks), "top_patches")
    assert ("never active" in text) == (count == 0)


def test_a_cut_out_holds_what_the_projection_shows() -> None:
    projection = np.zeros((3, 100, 80))
    projection[:, 60:70, 5:12] = 1
    pixels = np.arange(100 * 80 * 3).reshape(100, 80, 3).astype(np.uint8)
    cut = cut_out(PatchPair(pixels, projection))
    assert cut.pixels.shape == (40, 40, 3)
    assert cut.projection.sum() == projection.sum()
    top = 65 - 20
    assert np.array_equal(cut.pixels, pixels[top : top + 40, :40])
    empty = cut_out(PatchPair(pixels, np.zeros((3, 100, 80))))
    assert empty.pixels.shape[0] == empty.pixels.shape[1] <= 80
    with pytest.raises(InvalidArgumentError, match="pairs: got"):
        cut_out(PatchPair(pixels, np.zeros((3, 9, 9))))


def test_a_projection_of_nothing_is_grey_and_its_sign_is_seen() -> None:
    assert (projection_colours(np.zeros((3, 8, 8))) == 0.5).all()
    values = np.zeros((3, 8, 8))
    values[0, 2, 2], values[1, 4, 4] = 3.0, -3.0
    colours = projection_colours(values)
    assert colours[2, 2].tolist() == [1, 0.5, 0.5]
    assert colours[4, 4].tolist() == [0.5, 0, 0.5]
    assert np.isfinite(projection_colours(np.full((3, 4, 4), np.nan))).all()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("count", [1, 16, 256])
def test_feature_maps_of_any_number(count: int, signed: bool) -> None:
    maps = noise(count, 4, 6) - (0.5 if signed else 0)
    _, text = check(figures.feature_maps(maps, range(count), picture()), "feature_maps")
    assert ("blue is negative" in text) == signed
    with pytest.raises(InvalidArgumentError, match="maps: got"):
        figures.feature_maps(maps, range(count + 1), picture())


def test_occlusion_of_many_classes_and_of_nothing() -> None:
    labels = [f"class {i}" for i in range(30)]
    likeliest = np.arange(36).reshape(6, 6) % 30
    _, text = check(
        figures.occlusion(np.zeros((6, 6)), np.zeros((6, 6)), likeliest, labels, picture(), "class 3", size=4),
        "occlusion",
    )
    assert "others" in text


def test_grad_cam_tells_class_and_probability() -> None:
    _, text = check(figures.grad_cam(np.zeros((3, 3)), picture(), "tabby", 0.937), "grad_cam")
    assert "tabby, 93.7 %" in text


@pytest.mark.parametrize("shape", [(3, 3), (2, 2), (5, 5), (3, 7, 7)])
def test_kernels_are_drawn_with_their_numbers_or_colours(shape: tuple[int, ...]) -> None:
    weights = np.full(shape, -0.25)
    seen = noise(9, 40, 3) if len(shape) == 3 else noise(9, 40)
    _, text = check(figures.kernel(seen, weights, noise(9, 40), name="mine", white=0.3), "kernel")
    assert text.count("−0.25") == (0 if len(shape) == 3 else shape[0] * shape[1])
    with pytest.raises(InvalidArgumentError, match="kernel: got"):
        figures.kernel(noise(8, 40), weights, noise(9, 40))


def test_widths_that_do_not_suffice() -> None:
    networks = [NetworkError(1, 2, 7, 0.2), NetworkError(2, 2, 13, 0.05)]
    _, text = check(figures.width_depth(networks, 0.1), "width_depth")
    assert "not reached" in text
    assert "2 units, 13 weights" in text


def oklab_lightness(colours: Any) -> Any:
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    return np.cbrt(linear @ to_lms.T) @ [0.2104542553, 0.7936177850, -0.0040720468]


def test_colour_maps_change_their_lightness_evenly() -> None:
    lightness = oklab_lightness(even_colours()(np.linspace(0, 1, 101))[:, :3])
    steps = np.diff(lightness)
    assert (steps < 0).all()
    assert steps.min() > 1.6 * steps.mean()
    both = oklab_lightness(diverging_colours()(np.linspace(0, 1, 101))[:, :3])
    assert both[50] > 0.95
    assert np.abs(both - both[::-1]).max() < 0.02  # alike at both ends
    assert (np.diff(both[:51]) > 0).all()
