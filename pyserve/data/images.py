"""Decoding pictures: any common format and mode to upright RGB, hostile files refused, memory bounded.

Pillow's decoders run outside Python's lock, so threads decode at once; how many pixels they hold at once is
bounded for the whole process, whatever the number of threads.
"""

from __future__ import annotations

import functools
import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from pyserve.errors import DataError

# Not what Pillow could open beside these: EPS, for one, would run a program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_CHUNK_BYTES = 1 << 20
_PIXELS_AT_ONCE = 128_000_000  # about 1.4 GB, at up to 11 bytes a pixel while one is cut and converted
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _PixelBudget:
    """Pixels that may be decoded at once; a single picture may exceed it, alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until there is room, and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._limit)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


_budget = _PixelBudget(_PIXELS_AT_ONCE)


Source = bytes | Path | BinaryIO
Box = tuple[float, float, float, float]  # left, top, right, bottom
Pixels = npt.NDArray[np.uint8]
Resize = Callable[[Image.Image, int], Pixels]  # a square picture and the wanted side, pixels → [side, side, 3]


@dataclass(frozen=True)
class ReadSquare:
    """A picture's square and what is to be known of its file."""

    pixels: Pixels  # [3, side, side]
    sha256: str
    size_bytes: int


def decode_image(source: Source, *, max_pixels: int) -> Image.Image:
    """An encoded picture (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF) as an upright RGB image.

    Turned as its EXIF orientation says; the first frame of several; transparency on white; 16-bit grey as 8-bit.

    Args:
        source: the file's bytes, its path, or the open file.
        max_pixels: a larger picture is refused from its header, before it is decoded.

    Raises:
        DataError: says why the picture cannot be used, and holds no path.
        OSError: the file of a path cannot be opened.
    """
    with _loaded(source, max_pixels) as (image, _):
        turn = _turn_of(image)
        rgb = _to_rgb(image)
        return rgb if turn is None else rgb.transpose(turn)


def resize_with_pillow(square: Image.Image, side: int) -> Pixels:
    """A square picture at another size: bilinear with antialiasing."""
    return np.asarray(square.resize((side, side), Image.Resampling.BILINEAR))


def decode_square(source: Source, side: int, *, max_pixels: int, resize: Resize = resize_with_pillow) -> Pixels:
    """An encoded picture as a network's square: `to_square` of `decode_image`, but for large JPEGs much faster.

    A JPEG at least four times as large as needed is decoded at 1/2, 1/4 or 1/8, twice the needed size or more,
    which cannot be told from the whole by eye (above 45 dB), and only the square is turned upright.

    Args:
        source, max_pixels: as for `decode_image`.
        side: of the square, pixels.
        resize: what resamples; `resampling.resize_with_torch` gives the same in half of the time.

    Returns:
        uint8 [3, side, side].

    Raises:
        DataError, OSError: as `decode_image` does.
    """
    with _loaded(source, max_pixels, 2 * side) as (image, box):
        turn = _turn_of(image)
        square = _square(_to_rgb(image), side, box, resize)
    if turn is not None:
        square = np.asarray(Image.fromarray(square).transpose(turn))
    return _channels_first(square)


def decode_preview(source: Source, max_side: int, *, max_pixels: int) -> bytes:
    """A JPEG of an encoded picture, to look at: upright, at most `max_side` pixels in its longer side.

    Args:
        source, max_pixels: as for `decode_image`.

    Raises:
        DataError, OSError: as `decode_image` does.
    """
    with _loaded(source, max_pixels, max_side) as (image, box):
        width, height = box[2] - box[0], box[3] - box[1]
        scale = min(1.0, max_side / max(width, height))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        turn = _turn_of(image)
        small = _to_rgb(image).resize(size, Image.Resampling.LANCZOS, box=box)
    buffer = io.BytesIO()
    (small if turn is None else small.transpose(turn)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def read_square(path: Path, side: int, *, max_pixels: int, resize: Resize = resize_with_pillow) -> ReadSquare:
    """`decode_square` of a file, and the file's hash."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
        size_bytes = file.tell()
        file.seek(0)
        pixels = decode_square(file, side, max_pixels=max_pixels, resize=resize)
    return ReadSquare(pixels, digest.hexdigest(), size_bytes)


def to_square(image: Image.Image, side: int) -> Pixels:
    """An RGB image as a network's square, uint8 [3, side, side].

    The short side becomes `side` pixels, the long side loses both ends alike, to a pixel (bilinear with
    antialiasing, as the pretrained weights of torchvision were trained). A square of that side already is taken as
    it is.
    """
    return _channels_first(_square(image, side, _whole(image), resize_with_pillow))


def _whole(image: Image.Image) -> Box:
    return 0.0, 0.0, float(image.width), float(image.height)


def _square(image: Image.Image, side: int, box: Box, resize: Resize) -> Pixels:
    """The central square of a box of the picture, [side, side, 3]; of two middle places the one before."""
    left, top, right, bottom = box
    short = float(min(right - left, bottom - top))
    if not short.is_integer():  # edges between pixels, which Pillow alone knows
        left, top = left + (right - left - short) / 2, top + (bottom - top - short) / 2
        edges = (left, top, left + short, top + short)
        return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=edges))
    left, top = left + (right - left - short) // 2, top + (bottom - top - short) // 2
    return resize(image.crop((int(left), int(top), int(left + short), int(top + short))), side)


def _channels_first(image: Pixels) -> Pixels:
    return np.ascontiguousarray(image.transpose(2, 0, 1))


@contextmanager
def _loaded(source: Source, max_pixels: int, short_side: int = 0) -> Iterator[tuple[Image.Image, Box]]:
    """A decoded picture and the box in it that is the picture; what is wrong with it is a DataError.

    Args:
        short_side: pixels that are needed of a JPEG, which is decoded at the smallest of 1, 1/2, 1/4 and 1/8 that
            has them; 0: at full size.
    """
    with ExitStack() as stack:
        if isinstance(source, Path):
            source = stack.enter_context(source.open("rb"))
        image = _open(io.BytesIO(source) if isinstance(source, bytes) else source, max_pixels)
        width, height = image.size
        if width * height > max_pixels:
            raise DataError(f"has {width} × {height} pixels, expected at most {max_pixels}")
        try:
            # a reduced JPEG ends in a part of a pixel, so the box is told beside it
            reduced = image.draft(None, (short_side, short_side)) if short_side else None
            stack.enter_context(_budget.take(image.width * image.height))
            image.load()
            yield image, reduced[1] if reduced else _whole(image)
        except (DataError, MemoryError):
            raise
        except Exception as error:  # decoders meet hostile bytes with nearly every exception there is
            raise _undecodable(error) from error


def _open(file: BinaryIO, max_pixels: int) -> Image.Image:
    try:
        return Image.open(file, formats=_readable_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own limit stands whatever ours is
        most = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise DataError(f"has too many pixels, expected at most {most}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"is not a picture that can be read here ({', '.join(_readable_formats())})") from error
    except Exception as error:
        raise _undecodable(error) from error


@functools.cache
def _readable_formats() -> tuple[str, ...]:
    """Those that this build of Pillow has: AVIF, for one, is young."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _undecodable(error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"cannot be decoded: {reason}")


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """What makes a loaded picture upright; asked after loading, since Pillow turns some formats (TIFF) then."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF says nothing
        return None
    return _TURN.get(orientation) if isinstance(orientation, int) else None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(image)
    if image.mode == "F":
        raise DataError("has floating-point pixels, whose range is not known; expected 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"has pixels from {values.min()} to {values.max()}, expected 8 or 16 bits")
    grey = ((values + 128) // 257).astype(np.uint8)  # 65535 is white
    return Image.fromarray(grey).convert("RGB")
