"""Every mode, every orientation, every kind of damage."""

from __future__ import annotations

import io
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, features

from pyserve.data import images
from pyserve.data.images import (
    _PixelBudget,
    decode_image,
    decode_preview,
    decode_square,
    read_square,
    resize_with_pillow,
    to_square,
)
from pyserve.data.resampling import resize_with_torch
from pyserve.errors import DataError
from tests.data.support import encoded, noise, png_header

LIMIT = 1_000_000


def decoded(data: bytes) -> Any:
    """int [H, W, 3]."""
    image = decode_image(data, max_pixels=LIMIT)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_are_exact(kind: str) -> None:
    pixels = noise(1)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (decoded(encoded(pixels, kind, **options)) == pixels).all()


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "GIF"])
def test_lossy_formats_come_close(kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    pixels = np.full((16, 16, 3), (200, 60, 90), np.uint8)
    assert abs(decoded(encoded(pixels, kind)) - pixels).max() <= 6


GREY = np.arange(0, 192, dtype=np.uint8).reshape(12, 16)
RGBA = np.dstack([noise(2), np.where(np.arange(192).reshape(12, 16) < 96, 255, 0).astype(np.uint8)])
HALF = np.full((4, 4, 4), (100, 0, 200, 128), np.uint8)


def palette_with_alpha() -> bytes:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    return encoded(image, "PNG", transparency=bytes([255, 0]))


def colour_key() -> bytes:
    """A PNG in which one exact colour is transparent."""
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    return encoded(Image.fromarray(pixels), "PNG", transparency=(1, 2, 3))


MODES: dict[str, tuple[bytes, Any]] = {
    "1": (encoded(Image.fromarray(GREY > 90)), np.where(GREY > 90, 255, 0)[..., None].repeat(3, 2)),
    "L": (encoded(GREY), GREY[..., None].repeat(3, 2)),
    "LA": (
        encoded(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(RGBA[..., 3])])),
        np.where(RGBA[..., 3] == 255, GREY, 255)[..., None].repeat(3, 2),
    ),
    "P": (encoded(Image.fromarray(GREY).convert("P")), GREY[..., None].repeat(3, 2)),
    "P with alpha": (palette_with_alpha(), [[[10, 20, 30], [255] * 3], [[255] * 3, [10, 20, 30]]]),
    "RGB with a colour key": (colour_key(), [[[255] * 3, [4, 5, 6]]]),
    "RGBA": (encoded(RGBA), np.where(RGBA[..., 3:] == 255, RGBA[..., :3], 255)),
    "RGBA half": (encoded(HALF), np.full((4, 4, 3), np.round(np.array([100, 0, 200]) * 0.502 + 255 * 0.498))),
    "16-bit grey": (encoded(GREY.astype(np.uint16) * 257), GREY[..., None].repeat(3, 2)),
    "16-bit grey, TIFF": (encoded(GREY.astype(np.uint16) * 257, "TIFF"), GREY[..., None].repeat(3, 2)),
    "32-bit grey within 16": (encoded(GREY.astype(np.int32) * 257, "TIFF"), GREY[..., None].repeat(3, 2)),
    "YCbCr": (encoded(Image.new("YCbCr", (4, 4), (128, 128, 128)), "TIFF"), np.full((4, 4, 3), 128)),
    "CMYK": (encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"), np.full((4, 4, 3), (255, 0, 0))),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode: str) -> None:
    data, expected = MODES[mode]
    assert abs(decoded(data) - np.asarray(expected)).max() <= 1


def test_cmyk_jpeg() -> None:
    got = decoded(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert abs(got - np.array([255, 0, 0])).max() <= 6


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.ones((3, 3), np.float32), "floating-point"),
        (np.full((3, 3), 70_000, np.int32), "from 70000 to 70000, expected 8 or 16 bits"),
        (np.full((3, 3), -1, np.int32), "from -1 to -1"),
    ],
)
def test_ranges_that_nobody_knows_are_refused(pixels: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decoded(encoded(pixels, "TIFF"))


# What each orientation does to the stored picture, told by numpy: rows and columns as EXIF 2.32 defines them.
UPRIGHT: dict[int, Any] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_orientations(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = noise(3, 16, 24).repeat(8, 0).repeat(8, 1)  # blocks that JPEG keeps
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(kind, {})
    got = decoded(encoded(pixels, kind, exif=exif.tobytes(), **options))
    expected = UPRIGHT[orientation](pixels)
    assert got.shape == expected.shape
    assert abs(got - expected).mean() <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_do_not_exist_are_none(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (decoded(encoded(noise(3), exif=exif.tobytes())) == noise(3)).all()


@pytest.mark.filterwarnings("ignore")  # Pillow warns of it, and goes on
def test_damaged_exif_says_nothing() -> None:
    data = encoded(noise(4), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert decoded(data).shape == (12, 16, 3)


def test_the_first_frame_counts() -> None:
    frames = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (10, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    assert (decoded(buffer.getvalue()) == 10).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_truncated_pictures_are_refused(kind: str, kept: float) -> None:
    data = encoded(noise(5, 64, 64), kind)
    with pytest.raises(DataError):
        decoded(data[: int(len(data) * kept)])


def test_a_truncated_jpeg_is_refused_at_reduced_size_too() -> None:
    data = encoded(noise(5, 256, 256), "JPEG")
    assert decode_square(data, 8, max_pixels=LIMIT).shape == (3, 8, 8)
    with pytest.raises(DataError, match="truncated"):
        decode_square(data[:-100], 8, max_pixels=LIMIT)


@given(st.data())
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_damage_gives_a_picture_or_our_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]))
    file = bytearray(encoded(noise(6), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    with suppress(DataError):
        assert decode_image(bytes(file), max_pixels=LIMIT).mode == "RGB"


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"is not a picture that can be read here \(JPEG, PNG"):
        decoded(data)


def test_a_bomb_is_refused_from_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DataError, match="has 1001 × 1000 pixels, expected at most 1000000"):
        decoded(png_header(1001, 1000))
    with pytest.raises(DataError, match="too many pixels, expected at most 1000000"):
        decoded(png_header(60_000, 60_000))


def test_errors_hold_no_path(tmp_path: Path) -> None:
    for name, data in {"a.png": b"hello", "b.png": encoded(noise(0))[:-200]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError) as info:
            decode_image(tmp_path / name, max_pixels=LIMIT)
        assert str(tmp_path) not in info.value.message


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode_image(tmp_path / "a.png", max_pixels=LIMIT)


def test_reading_hashes_the_file(tmp_path: Path) -> None:
    import hashlib

    data = encoded(noise(7))
    (tmp_path / "a.png").write_bytes(data)
    read = read_square(tmp_path / "a.png", 9, max_pixels=LIMIT)
    assert (read.sha256, read.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert (read.pixels == decode_square(data, 9, max_pixels=LIMIT)).all()


@pytest.mark.parametrize(("side", "height"), [(600, 600), (151, 600), (150, 300), (75, 150), (37, 75), (1, 75)])
def test_a_large_jpeg_is_decoded_smaller(monkeypatch: pytest.MonkeyPatch, side: int, height: int) -> None:
    taken = []
    take = images._budget.take
    monkeypatch.setattr(images._budget, "take", lambda pixels: (taken.append(pixels), take(pixels))[1])
    decode_square(encoded(noise(8, 600, 800), "JPEG"), side, max_pixels=LIMIT)
    assert taken == [height * height * 4 // 3]


def psnr_db(a: Any, b: Any) -> float:
    return float(10 * np.log10(255**2 / ((a.astype(int) - b.astype(int)) ** 2).mean()))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_decoding_smaller_keeps_the_quality(test_data: Path, orientation: int) -> None:
    """Also where the reduced picture ends in a part of a pixel, on whichever side it comes to lie."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = Image.open(test_data / "photos" / "rocket.jpg").convert("RGB").resize((1927, 1289))
    data = encoded(photo, "JPEG", quality=90, exif=exif.tobytes())
    upright = decode_image(data, max_pixels=10_000_000)
    for side in (64, 128):
        fast = decode_square(data, side, max_pixels=10_000_000)
        assert psnr_db(fast, to_square(upright, side)) > 45


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_square_is_that_of_the_image(kind: str) -> None:
    data = encoded(noise(11, 30, 50), kind)
    image = decode_image(data, max_pixels=LIMIT)
    assert (decode_square(data, 20, max_pixels=LIMIT) == to_square(image, 20)).all()


def test_real_pictures(test_data: Path) -> None:
    for path in sorted((test_data / "photos").iterdir()):
        square = to_square(decode_image(path, max_pixels=10_000_000), 64)
        assert square.shape == (3, 64, 64)
        assert square.std() > 10


def test_a_square_of_that_side_is_taken_as_it_is() -> None:
    pixels = noise(9, 20, 20)
    assert (to_square(Image.fromarray(pixels), 20) == pixels.transpose(2, 0, 1)).all()


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40)])
def test_the_centre_of_the_long_side_is_kept(height: int, width: int) -> None:
    pixels = noise(10, height, width)
    square = to_square(Image.fromarray(pixels), 40)
    top, left = (height - 40) // 2, (width - 40) // 2
    assert square.dtype == np.uint8
    assert (square == pixels[top : top + 40, left : left + 40].transpose(2, 0, 1)).all()


def test_a_square_averages_what_it_shrinks() -> None:
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert abs(to_square(Image.fromarray(checkers), 16).astype(int) - 127).max() <= 2


@pytest.mark.parametrize("side", [7, 33, 60, 90])
def test_both_ways_of_resampling_agree(side: int) -> None:
    square = Image.fromarray(noise(12, 60, 60))
    ours, theirs = resize_with_torch(square, side), resize_with_pillow(square, side)
    assert ours.shape == (side, side, 3)
    assert abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_preview_is_upright_and_small(kind: str) -> None:
    pixels = np.zeros((300, 900, 3), np.uint8)
    pixels[:, :450] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn clockwise makes it upright: white becomes the top
    shown = Image.open(io.BytesIO(decode_preview(encoded(pixels, kind, exif=exif), 90, max_pixels=LIMIT)))
    assert (shown.format, shown.size) == ("JPEG", (30, 90))
    grey = np.asarray(shown.convert("L")).astype(int)
    assert (grey[:40] > 245).all()
    assert (grey[50:] < 10).all()


def test_a_preview_enlarges_nothing_and_refuses_what_cannot_be_decoded() -> None:
    assert Image.open(io.BytesIO(decode_preview(encoded(noise(1)), 512, max_pixels=LIMIT))).size == (16, 12)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_preview(encoded(noise(1))[:-60], 512, max_pixels=LIMIT)


def test_pixels_held_at_once_are_bounded() -> None:
    budget = _PixelBudget(100)
    held, most, lock = 0, 0, threading.Lock()

    def work(pixels: int) -> None:
        nonlocal held, most
        for _ in range(200):
            with budget.take(pixels):
                with lock:
                    held += pixels
                    most = max(most, held)
                with lock:
                    held -= pixels

    threads = [threading.Thread(target=work, args=(pixels,)) for pixels in (40, 50, 60, 70)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert 0 < most <= 100


def test_a_picture_above_the_bound_is_decoded_alone() -> None:
    budget = _PixelBudget(100)
    with budget.take(1000):
        waiting = threading.Thread(target=lambda: budget.take(1).__enter__())
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
    waiting.join(30)
    assert not waiting.is_alive()
