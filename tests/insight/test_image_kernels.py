"""Image kernels against sums over pixels written out as loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from pyserve import kernels
from pyserve.errors import InvalidArgumentError
from pyserve.insight.image_kernels import IMAGE_KERNELS, apply_kernel, learned_kernel, named_kernel, own_kernel
from pyserve.spec import IMAGE_KERNEL_NAMES
from tests.insight.networks import planted, stripe


def photo(width: int = 20, height: int = 14) -> Image.Image:
    pixels = np.random.default_rng(4).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def by_loops(grey: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Every product, one after another; where the size is even there is one more on the far side."""
    rows, columns = kernel.shape
    padded = np.pad(grey, (((rows - 1) // 2, rows // 2), ((columns - 1) // 2, columns // 2)))
    height, width = grey.shape
    result = np.zeros((height, width))
    for y, x, i, j in itertools.product(range(height), range(width), range(rows), range(columns)):
        result[y, x] += padded[y + i, x + j] * kernel[i, j]
    return result


@pytest.mark.parametrize("name", IMAGE_KERNELS)
def test_named_kernels(name: str) -> None:
    image = photo()
    kernel = named_kernel(name)
    found = apply_kernel(image, kernel)
    grey = np.asarray(image, np.float64) @ (0.299, 0.587, 0.114) / 255
    assert found.picture == pytest.approx(grey, abs=1e-6)
    assert found.response == pytest.approx(by_loops(grey, kernel), abs=1e-4)
    assert found.shown == pytest.approx(found.response.clip(0, 1))
    assert (found.shown.min() >= 0) & (found.shown.max() <= 1)


@pytest.mark.parametrize("side", [2, 3, 5])
def test_own_kernels(side: int) -> None:
    image = photo()
    rows = np.random.default_rng(side).normal(size=(side, side))
    found = apply_kernel(image, own_kernel(rows.tolist()))
    assert found.response.shape == (14, 20)
    assert found.response == pytest.approx(by_loops(found.picture, rows), abs=1e-4)


def test_what_the_names_promise() -> None:
    """A bright square on dark: top finds the edge above which it is darker, and so on round."""
    pixels = np.zeros((11, 11, 3), np.uint8)
    pixels[3:8, 3:8] = 255
    square = Image.fromarray(pixels)
    lit = {name: apply_kernel(square, named_kernel(name)).shown > 0.99 for name in IMAGE_KERNELS}
    assert lit["sobel_bottom"][2:4, 5].all()
    assert not lit["sobel_bottom"][7:9, 5].any()
    assert lit["sobel_top"][7:9, 5].all()
    assert lit["sobel_right"][5, 2:4].all()
    assert lit["sobel_left"][5, 7:9].all()
    assert lit["outline"][3, 3:8].all()
    assert not lit["outline"][5, 5]
    same = apply_kernel(square, named_kernel("identity")).shown
    assert (abs(same - pixels[..., 0] / 255) <= 1e-6).all()  # Winograd's transforms round
    blurred = apply_kernel(square, named_kernel("blur")).response
    assert blurred.sum() == pytest.approx(25, rel=1e-5)
    assert blurred[2, 5] == pytest.approx(0.25)


def test_a_learned_filter_sees_the_picture_as_its_network_does() -> None:
    probe = planted()
    image = Image.fromarray(stripe(column=5, colour=(255, 0, 0)))
    preprocessing = probe.preprocessing
    found = apply_kernel(image, learned_kernel(probe, 2), (preprocessing.mean, preprocessing.std))
    assert found.picture.shape == (16, 16, 3)
    assert found.response[:, 5] == pytest.approx(1 + 0.5 + 0.5)  # red is 1, green and blue are −1
    assert found.response[:, 6] == pytest.approx(-1 + 0.5 + 0.5)
    assert found.white == pytest.approx(2)
    assert found.shown[:, 5] == pytest.approx(1)
    with pytest.raises(InvalidArgumentError, match="channel: got 4, expected 0 to 3 of conv"):
        learned_kernel(probe, 4)


def test_it_is_our_convolution() -> None:
    def calls() -> int:
        found = kernels.info().calls.items()
        return sum(n for name, n in found if name.startswith("conv2d_") and "grad" not in name)

    before = calls()
    apply_kernel(photo(), named_kernel("emboss"))
    assert calls() == before + 1


def test_large_pictures_are_made_smaller_and_small_ones_refused() -> None:
    found = apply_kernel(photo(1600, 800), named_kernel("blur"))
    assert found.response.shape == (512, 1024)
    with pytest.raises(InvalidArgumentError, match="image: got '4 × 9 pixels', expected at least the kernel's"):
        apply_kernel(photo(4, 9), own_kernel(np.eye(5).tolist()))


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "got '0 rows of no numbers'"),
        ([[1, 2], [3]], "got '2 rows of 1 and 2 numbers'"),
        ([[1] * 4] * 4, "got '4 rows of 4 numbers', expected 2 × 2, 3 × 3 or 5 × 5"),
        ([[1, 2], [3, float("nan")]], "expected finite numbers"),
    ],
)
def test_own_kernels_of_other_forms(rows: list[list[float]], sentence: str) -> None:
    with pytest.raises(InvalidArgumentError, match=sentence):
        own_kernel(rows)


def test_the_names_are_those_of_the_spec() -> None:
    assert tuple(IMAGE_KERNELS) == IMAGE_KERNEL_NAMES
    with pytest.raises(InvalidArgumentError, match="name: got 'odd', expected one of identity, sobel_top"):
        named_kernel("odd")
