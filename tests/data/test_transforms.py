"""Views and augmentations against formulas of their own, and against their statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch

from pyserve._torchvision import torchvision
from pyserve.data import transforms
from pyserve.data.transforms import AUGMENTATIONS, augment, evaluation_view, normalize, presize_for, tta_views
from pyserve.errors import InvalidArgumentError
from pyserve.spec import Augment

NAMES = get_args(Augment)


def squares(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """Noise, uint8 [N, 3, side, side]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def slopes(count: int, side: int) -> torch.Tensor:
    """Pictures whose red is the column and whose green is the row, uint8 [N, 3, side, side], side ≤ 256."""
    ramp = torch.arange(side, dtype=torch.uint8)
    columns, rows = ramp.expand(side, side), ramp[:, None].expand(side, side)
    return torch.stack([columns, rows, torch.zeros(side, side, dtype=torch.uint8)]).expand(count, 3, side, side)


def drawn(name: str, images: torch.Tensor, size: int, seed: int = 0, **options: Any) -> torch.Tensor:
    return augment(name, images, size, torch.Generator().manual_seed(seed), **options)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_registry_has_the_spec_s_names() -> None:
    assert set(AUGMENTATIONS) == set(NAMES)


def test_unknown_augmentations_are_told() -> None:
    with pytest.raises(InvalidArgumentError, match="augment: got 'flips', expected one of none, flip, crop,"):
        presize_for(32, "flips")


@pytest.mark.parametrize(
    ("size", "augmentation", "presize"),
    [(224, "standard", 256), (224, "strong", 256), (16, "standard", 18), (32, "crop", 32), (224, "none", 224)],
)
def test_presizes(size: int, augmentation: str, presize: int) -> None:
    assert presize_for(size, augmentation) == presize


def test_normalisation_is_the_formula() -> None:
    view = torch.rand(4, 3, 5, 6)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.4, 1.6)
    expected = np.empty((4, 3, 5, 6))
    for channel in range(3):
        expected[:, channel] = (view.numpy()[:, channel].astype(np.float64) - mean[channel]) / std[channel]
    before = view.clone()
    got = normalize(view, mean, std)
    assert got.dtype == torch.float32
    assert (abs(got.numpy() - expected) <= 1e-6).all()
    assert torch.equal(view, before)
    assert torch.equal(normalize(view, list(mean), list(std)), got)


def test_normalisation_first_used_in_inference_mode_still_learns() -> None:
    statistics: dict[str, Any] = {"mean": (0.11, 0.22, 0.33), "std": (0.4, 0.5, 0.7)}
    with torch.inference_mode():
        normalize(torch.rand(1, 3, 2, 2), **statistics)
    view = torch.rand(1, 3, 2, 2, requires_grad=True)
    normalize(view, **statistics).sum().backward()
    assert view.grad is not None
    assert (abs(view.grad[0, :, 0, 0] - torch.tensor([2.5, 2.0, 1 / 0.7])) <= 1e-6).all()


@pytest.mark.parametrize(("presize", "size", "first"), [(18, 16, 1), (256, 224, 16), (20, 20, 0)])
def test_the_evaluation_view_is_the_centre(presize: int, size: int, first: int) -> None:
    images = squares(3, presize)
    expected = images.numpy()[:, :, first : first + size, first : first + size] / 255
    view = evaluation_view(images, size)
    assert view.dtype == torch.float32
    assert (abs(view.numpy() - expected) <= 1e-7).all()
    assert (abs(evaluation_view(images.float() / 255, size) - view) <= 1e-7).all()


@pytest.mark.parametrize("function", [evaluation_view, tta_views])
def test_pictures_that_are_too_small(function: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"images: got \[2, 3, 15, 15\], expected pictures of at"):
        function(squares(2, 15), 16)


@pytest.mark.parametrize("presize", [16, 17, 18, 32, 256])
def test_five_views(presize: int) -> None:
    views = tta_views(squares(2, presize), 16)
    assert len(views) == 5
    assert torch.equal(views[0], evaluation_view(squares(2, presize), 16))
    for view in views:
        assert (view.shape, view.dtype) == ((2, 3, 16, 16), torch.float32)
        assert 0 <= view.min() <= view.max() <= 1
    for i in range(5):
        for j in range(i):
            assert not torch.equal(views[i], views[j])
    assert all(torch.equal(a, b) for a, b in zip(views, tta_views(squares(2, presize), 16), strict=True))


def test_views_are_corners_two_of_them_mirrored() -> None:
    views = [(255 * view).round().int() for view in tta_views(slopes(1, 18), 16)]
    corners = [(view[0, 0, 0, 0].item(), view[0, 0, 0, -1].item(), view[0, 1, 0, 0].item()) for view in views]
    # first column, last column, first row
    assert corners == [(1, 16, 1), (0, 15, 0), (17, 2, 0), (15, 0, 2), (2, 17, 2)]


def test_views_of_pictures_without_a_margin_are_shifted_and_mirrored_at_the_edge() -> None:
    views = [(255 * view).round().int() for view in tta_views(slopes(1, 32), 32)]
    # a pixel comes in at the left or at the right; the third and the fourth view are mirrored
    assert [view[0, 0, 0, :5].tolist() for view in views[1:]] == [
        [1, 0, 1, 2, 3],
        [30, 31, 30, 29, 28],
        [30, 29, 28, 27, 26],
        [1, 2, 3, 4, 5],
    ]
    assert [view[0, 1, :3, 0].tolist() for view in views[1:]] == [[1, 0, 1], [1, 0, 1], [1, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize("name", NAMES)
def test_augmentations_give_views(name: str) -> None:
    images = squares(6, presize_for(16, name))
    before = images.clone()
    view = drawn(name, images, 16)
    assert (view.shape, view.dtype) == ((6, 3, 16, 16), torch.float32)
    assert 0 <= view.min() <= view.max() <= 1
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("threads")
def test_augmentations_are_a_function_of_the_seed(name: str) -> None:
    images = squares(40, presize_for(48, name))
    torch.set_num_threads(1)
    one = drawn(name, images, 48, seed=5)
    torch.manual_seed(99)  # the global generator plays no part
    torch.set_num_threads(2)
    assert torch.equal(drawn(name, images, 48, seed=5), one)
    state = torch.get_rng_state()
    other = drawn(name, images, 48, seed=6)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(other, one) == (name == "none")


@pytest.mark.parametrize("name", NAMES)
def test_memory_layout_plays_no_part(name: str) -> None:
    images = squares(4, presize_for(16, name))
    other = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(drawn(name, images, 16), drawn(name, other, 16))


def test_none_is_the_evaluation_view() -> None:
    assert torch.equal(drawn("none", squares(3, 20), 16), evaluation_view(squares(3, 20), 16))


def test_flip_mirrors_half_and_changes_nothing_else() -> None:
    images = squares(1, 16).expand(2000, 3, 16, 16)
    plain = evaluation_view(images, 16)
    view = drawn("flip", images, 16)
    mirrored = (view == plain.flip(-1)).all(3).all(2).all(1)
    kept = (view == plain).all(3).all(2).all(1)
    assert (mirrored ^ kept).all()
    assert 880 <= mirrored.sum() <= 1120  # 1000 expected, 22 the standard deviation


def test_crop_shifts_by_an_eighth_at_most_and_reflects() -> None:
    images = slopes(3000, 32)
    view = (255 * drawn("crop", images, 32)).round().int()
    red, green = view[:, 0], view[:, 1]
    middle = red[:, 0, 12:20].float()
    mirrored = (middle[:, 1:] - middle[:, :-1]).mean(1) < 0
    # where the middle of the picture came from; mirrored pictures have their columns counted from the other end
    column = torch.where(mirrored, red[:, 0, 15], red[:, 0, 16]) - 16
    row = green[:, 16, 0] - 16
    assert (column.abs() <= 4).all()
    assert (row.abs() <= 4).all()
    assert len(set(zip(column.tolist(), row.tolist(), strict=True))) == 81
    for shift in range(-4, 5):
        assert 250 <= (row == shift).sum() <= 420  # 333 expected, 17 the standard deviation
    assert 1350 <= mirrored.sum() <= 1650
    for index in range(50):
        expected = [abs(i + int(row[index])) for i in range(32)]
        expected = [62 - i if i > 31 else i for i in expected]
        assert green[index, :, 0].tolist() == expected


@pytest.mark.parametrize(("max_shift", "pixels"), [(1 / 16, 2), (0.01, 1), (0.5, 16)])
def test_crop_shifts_as_far_as_it_may(max_shift: float, pixels: int) -> None:
    images = slopes(1000, 32)
    view = (255 * drawn("crop", images, 32, max_shift=max_shift, mirrored=torch.zeros(1000).bool())).round().int()
    for channel in (view[:, 0, 16], view[:, 1, :, 16]):  # columns along a row, rows along a column
        shift = channel[:, 16] - 16
        shift = torch.where(channel[:, 17] < channel[:, 16], 30 - shift, shift)  # 16 further: beyond the edge
        assert (shift.min(), shift.max()) == (-pixels, pixels)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_who_is_mirrored_may_be_told(name: str) -> None:
    images = slopes(200, presize_for(32, name))
    mirrored = torch.arange(200) % 3 == 0
    red = drawn(name, images, 32, mirrored=mirrored)[:, 0, 16]
    assert torch.equal(red[:, 20] < red[:, 12], mirrored)


def regions(count: int, side: int, size: int) -> torch.Tensor:
    """Of each crop of "standard": centre (x, y), half width (negative where mirrored), half height; in −1…1."""
    view = 255 * drawn("standard", slopes(count, side), size)
    across, down = view[:, 0].mean(1), view[:, 1].mean(2)  # [N, size]

    def line(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inner = values[:, size // 5 : -(size // 5)]  # away from the edge, where the last pixel is repeated
        step = (inner[:, -1] - inner[:, 0]) / (inner.shape[1] - 1)
        centre = (inner[:, -1] + inner[:, 0]) / 2
        return (centre + 0.5) / side * 2 - 1, step * size / side

    (x, width), (y, height) = line(across), line(down)
    return torch.stack([x, y, width, height], 1)


def test_standard_crops_stay_inside_and_have_the_promised_sizes() -> None:
    x, y, width, height = regions(1500, 64, 56).unbind(1)
    tolerance = 0.01
    assert (x.abs() + width.abs() <= 1 + tolerance).all()
    assert (y.abs() + height <= 1 + tolerance).all()
    assert (height > 0).all()
    area, aspect = width.abs() * height, width.abs() / height
    low, high = transforms._AREA
    assert (area >= low * 3 / 4 - tolerance).all()  # less than `low` only where the aspect met an edge
    assert (area <= high + tolerance).all()
    assert (area < low - tolerance).float().mean() < 0.05
    assert (aspect >= 3 / 4 - tolerance).all()
    assert (aspect <= 4 / 3 + tolerance).all()
    assert 0.6 < area.mean() < 0.7
    assert abs(aspect.log().mean()) < 0.02
    assert 0.46 <= (width < 0).float().mean() <= 0.54
    assert abs(x.mean()) < 0.02
    assert abs(y.mean()) < 0.02
    assert x.std() > 0.05


def test_standard_agrees_with_a_crop_resized_by_pillow() -> None:
    """The picture of one crop, against Pillow's box of the same region."""
    from PIL import Image

    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = coarse.resize((128, 128), Image.Resampling.BICUBIC)
    images = torch.from_numpy(np.asarray(smooth).transpose(2, 0, 1).copy()).expand(20, 3, 128, 128)
    view = 255 * drawn("standard", images, 112)
    for index, (x, y, width, height) in enumerate(regions(20, 128, 112).tolist()):
        box = [(c + s * abs(half)) * 64 + 64 for s in (-1, 1) for c, half in ((x, width), (y, height))]
        box = [min(max(edge, 0), 128) for edge in box]
        expected = np.asarray(smooth.resize((112, 112), Image.Resampling.BILINEAR, box=tuple(box)))  # type: ignore[arg-type]
        expected = expected[:, ::-1] if width < 0 else expected
        assert abs(view[index].numpy().transpose(1, 2, 0) - expected).mean() < 3


def test_strong_turns_by_ten_degrees_at_most() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = transforms._crop_matrices(500, transforms._Draw(generator, 0.0, None))
    angle = torch.linspace(-math.radians(10), math.radians(10), 500)
    turned = transforms._rotated(matrices, angle)
    assert torch.equal(turned[:, :, 2], matrices[:, :, 2])  # about the crop's own centre
    # undo the scaling: what is left is the rotation
    left = turned[:, 0, :2] / matrices[:, 0, :1]
    assert (abs(torch.atan2(-left[:, 1], left[:, 0]) - angle) <= 1e-5).all()
    assert (abs(turned[:, :, :2].det() - matrices[:, :, :2].det()) <= 1e-5).all()


def test_strong_turns_and_colours_and_standard_does_not() -> None:
    grey = torch.full((200, 3, 36, 36), 128, dtype=torch.uint8)
    assert (abs(drawn("standard", grey, 32) - 128 / 255) <= 1e-5).all()
    levels = drawn("strong", grey, 32).mean((1, 2, 3)) / (128 / 255)
    assert (levels >= 0.699).all()
    assert (levels <= 1.301).all()
    assert levels.std() > 0.1
    tilts = (255 * drawn("standard", slopes(50, 128), 112))[:, 0, 20:-20, 56]
    assert (tilts.std(1) <= 0.1).all()  # columns stay columns


def test_colours_are_torchvision_s() -> None:
    torchvision()
    from torchvision.transforms.v2 import functional as v2

    view = torch.rand(5, 3, 9, 9)
    factors = torch.tensor([[0.7, 1, 1, 1.3, 0.9], [1, 0.7, 1, 1.2, 1.1], [1, 1, 0.7, 0.8, 1.3]])
    got = transforms._coloured(view, factors[:, :, None, None, None])
    for index in range(5):
        expected = v2.adjust_brightness(view[index], float(factors[0, index]))
        expected = v2.adjust_contrast(expected, float(factors[1, index]))
        expected = v2.adjust_saturation(expected, float(factors[2, index]))
        assert (abs(got[index] - expected) <= 1e-5).all()
