"""Pictures through a table: any layout, both types, errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyserve.errors import InvalidArgumentError
from pyserve.kernels.pixels import normalize_pixels

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def random_pixels(*sizes: int) -> Tensor:
    return torch.randint(0, 256, sizes, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def table_of(dtype: torch.dtype) -> Tensor:
    """768 numbers of which no two are alike."""
    return torch.arange(0x3F80, 0x3F80 + 768, dtype=torch.int16).view(torch.bfloat16).view(3, 256).to(dtype)


def layouts(pixels: Tensor) -> dict[str, Tensor]:
    """The same pictures, laid out in many ways."""
    framed = torch.nn.functional.pad(pixels, (3, 1, 2, 4), value=77)
    return {
        "dense": pixels.contiguous(),
        "channels-last": pixels.contiguous(memory_format=torch.channels_last),
        "crop": framed[:, :, 2:-4, 3:-1],
        "channels-last crop": framed.contiguous(memory_format=torch.channels_last)[:, :, 2:-4, 3:-1],
        "every second": pixels.repeat_interleave(2, 3)[..., ::2],
        "transposed": pixels.mT.contiguous().mT,
    }


@DTYPES
@pytest.mark.parametrize("layout", list(layouts(random_pixels(1, 3, 2, 2))))
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 5, 7), (3, 8, 4), (0, 4, 4), (2, 0, 3), (3, 190, 181)], ids=str)
def test_every_value_is_the_table_s(dtype: torch.dtype, layout: str, sizes: tuple[int, int, int]) -> None:
    n, h, w = sizes
    pixels = random_pixels(n, 3, h, w)
    table = table_of(dtype)
    expected = torch.stack([table[c][pixels[:, c].long()] for c in range(3)], 1)
    got = normalize_pixels(layouts(pixels)[layout], table)
    assert got.dtype is dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, expected)
    assert torch.equal(normalize_pixels(layouts(pixels)[layout], table.mT.contiguous().mT), expected)


@DTYPES
def test_one_picture_many_times(dtype: torch.dtype) -> None:
    pixels, table = random_pixels(1, 1, 6, 5), table_of(dtype)
    got = normalize_pixels(pixels.expand(4, 3, 6, 5), table)
    assert torch.equal(got, table[:, pixels[0, 0].long()].expand(4, 3, 6, 5))


@DTYPES
def test_threads_do_not_matter(dtype: torch.dtype) -> None:
    pixels, table, threads = random_pixels(7, 3, 224, 224), table_of(dtype), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = normalize_pixels(pixels, table)
        torch.set_num_threads(3)
        got = normalize_pixels(pixels, table)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(got, expected)


@DTYPES
def test_opcheck(dtype: torch.dtype) -> None:
    for pixels in (random_pixels(2, 3, 5, 4), random_pixels(2, 3, 5, 4)[:, :, 1:3, 1:], random_pixels(0, 3, 5, 4)):
        torch.library.opcheck(torch.ops.pyserve.normalize_pixels.default, (pixels, table_of(dtype)))


PIXELS, TABLE = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, 256)
WRONG = [
    (PIXELS[0], TABLE, "pixels is [3, 4, 4], expected [N, 3, H, W]"),
    (PIXELS[:, :1], TABLE, "pixels is [2, 1, 4, 4], expected [N, 3, H, W]"),
    (PIXELS.float(), TABLE, "pixels is float32, expected uint8"),
    (PIXELS, TABLE.double(), "table is float64, expected float32 or bfloat16"),
    (PIXELS, TABLE[:, :255], "table is [3, 255], expected [3, 256]: one value per channel and pixel value"),
    (PIXELS, TABLE[:1], "table is [1, 256], expected [3, 256]: one value per channel and pixel value"),
]


@pytest.mark.parametrize(("pixels", "table", "sentence"), WRONG, ids=[sentence for *_, sentence in WRONG])
@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_wrong_arguments_get_a_sentence(place: str, pixels: Tensor, table: Tensor, sentence: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        normalize_pixels(pixels.to(place), table.to(place))
    assert caught.value.message == f"normalize_pixels: {sentence}"


def test_both_lie_on_one_device() -> None:
    with pytest.raises(InvalidArgumentError, match="normalize_pixels: table is on meta, expected cpu like pixels"):
        normalize_pixels(PIXELS, TABLE.to("meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_other_devices_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="normalize_pixels: pixels is on cuda:0, expected cpu"):
        normalize_pixels(PIXELS.cuda(), TABLE.cuda())
